"""A measure generates records on all ranks, then scores them."""

import logging
import math
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NotRequired, Self

import torch
from typing_extensions import TypedDict

from callbacks.measures.records import (
    RESULTS,
    SAMPLE,
    WEIGHTS,
    Record,
    RecordBook,
    drop_result,
    read_results,
    write_result,
)
from callbacks.tracking import Tracker
from datamodules.datasets import Samples
from datamodules.encode import PromptTemplate
from modules import signals
from modules.files import code_version, step_name
from modules.json_lines import Keys
from modules.omnimamba.config import Task
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import ImageTokenizer
from modules.reading import checked
from modules.run_files import RECORDS
from modules.unheard import unheard

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """What a measure gets to work with: a model and its parts at one step, and this process's part of the work."""

    model: OmniMamba
    tokenizer: TextTokenizer
    vq: ImageTokenizer | None
    """None in a run that cannot decode pictures (model.vq is empty)."""
    template: PromptTemplate
    device: torch.device
    step: int
    folder: Path
    """The run folder."""
    batch_size: int
    rank: int = 0
    world_size: int = 1
    weights: str = ""
    """Fingerprint of the model's weights."""
    checkpoint: str = ""
    """Which file the weights come from, and its hash, if known."""
    caption_dropout: float = 0.0
    """Share of the captions that the model was trained without."""
    validation: Callable[[], Mapping[Task, Samples]] = dict
    """The samples of data.val, by task; opened when first called."""
    deadline: float = math.inf
    """Time on `time.monotonic` at which generating stops."""
    progress: Callable[[int, int], None] = unheard
    """Called with how many of this rank's samples have a record, and how many samples it has."""

    @property
    def records(self) -> Path:
        """Folder of this step's records and results."""
        return self.folder / RECORDS / step_name(self.step)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured, its standard errors, what the trivial answer scores, and exactly how it was measured."""

    metrics: dict[str, float]
    """Names of details contain a slash, as in ``random/f1``."""
    standard_errors: dict[str, float]
    baselines: dict[str, float]
    """By the name of the metric they belong to."""
    protocol: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    """Number of samples behind a metric; if a metric has none here, ``n`` of the protocol."""

    def n(self, metric: str) -> int:
        """Number of samples behind a metric."""
        return self.counts.get(metric, int(self.protocol["n"]))


class _Stored(TypedDict):
    """A `Result` on disk."""

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    baselines: dict[str, float]
    protocol: dict[str, Any]
    counts: NotRequired[dict[str, int]]


Publish = Callable[[Result, Sequence[Record]], None]
"""Called with a result and the records it was scored from."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """A measure's section of the configuration."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        return []

    def reduced(self, most: int) -> Self | None:
        """The section for at most ``most`` samples. Returns itself if the measure has a fixed size, and None if a part
        of it means nothing."""
        del most
        return self


class Measure(ABC):
    """One benchmark under one protocol. Ranks share the generating; scoring reads only the merged records."""

    key: ClassVar[str]
    """Name of its section of the configuration, and on the command line."""
    config_type: ClassVar[type[MeasureConfig]]
    """The type of that section."""
    record_keys: ClassVar[Keys] = {}
    """What its records must hold beyond `SAMPLE`: key to type."""
    draws: ClassVar[bool] = False
    """Whether it needs the image tokenizer."""
    mini: bool = False
    """Whether this is the small evaluation between full ones; its name then is the full one's with ``_mini``."""
    of_part: bool = False
    """Whether the full evaluation, too, looks only at a part, so that its own name ends in ``_mini``."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    @abstractmethod
    def name(self) -> str:
        """Name under which results are logged. A reduced or substitute measure never has the official name."""

    @property
    def prefix(self) -> str:
        """Prefix of what is logged. The small evaluation never shares a key with the full one."""
        return f"eval_mini/{self.name.removesuffix('_mini')}" if self.mini else f"eval/{self.name}"

    @abstractmethod
    def check(self, context: EvaluationContext) -> None:
        """Read the benchmark's files and raise what would stop the evaluation later (FileNotFoundError, ValueError)."""

    @abstractmethod
    def sample_ids(self) -> Sequence[str]:
        """Ids of all samples, in the benchmark's order."""

    @abstractmethod
    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Plain values that determine what is generated. Records made under another protocol are refused."""

    @abstractmethod
    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        """Yield the records of the samples ``ids``, a batch at a time. A record must not depend on its batch."""

    @abstractmethod
    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Score all records, given in the order of `sample_ids`."""

    def share(self, context: EvaluationContext) -> Sequence[str]:
        """The samples of `sample_ids` that are this rank's."""
        return self.sample_ids()[context.rank :: context.world_size]

    def prepare_scoring(self, context: EvaluationContext) -> None:
        """Do this rank's part of the work that would be slow in scoring on one rank. Nothing by default."""
        del context

    def publish(self, context: EvaluationContext, records: Sequence[Record], tracker: Tracker) -> None:
        """Log pictures and tables. Nothing by default."""
        del context, records, tracker

    def prepare(self, context: EvaluationContext) -> None:
        """Delete this step's records if they were made with other weights, in an attempt that was rolled back."""
        if self._book(context).is_of_other_weights(self._made_under(context)):
            log.warning("%s at step %d: records made with other weights are discarded", self.name, context.step)
            self.discard(context)

    def discard(self, context: EvaluationContext) -> None:
        """Delete this step's records, whatever they were made with, and the result scored from them."""
        drop_result(context.records, self.name)
        self._book(context).discard()

    def generate(self, context: EvaluationContext) -> bool:
        """Generate and write this rank's missing records, up to the deadline. False if a signal told it to stop.

        Raises:
            ValueError: the records on disk were made under another protocol.
        """
        book = self._book(context)
        book.open(self._made_under(context))
        done = book.read().keys()
        mine = list(self.share(context))
        missing = [sample for sample in mine if sample not in done]
        written = len(mine) - len(missing)
        context.progress(written, len(mine))
        for records in self.produce(context, missing):
            book.append(records)
            written += len(records)
            context.progress(written, len(mine))
            if signals.received():
                return False
            if time.monotonic() > context.deadline:
                break
        return True

    def done(self, context: EvaluationContext) -> float:
        """Share of the samples that have a record."""
        return len(self._book(context).read()) / max(1, len(self.sample_ids()))

    def records(self, context: EvaluationContext) -> list[Record]:
        """All ranks' records in the order of `sample_ids`.

        Raises:
            ValueError: some are missing, unknown, or made under another protocol.
        """
        book, expected = self._book(context), self.sample_ids()
        book.require_protocol(self._made_under(context))
        found = book.read()
        missing = [sample for sample in expected if sample not in found]
        unknown = sorted(found.keys() - set(expected))
        if missing or unknown:
            example = missing[0] if missing else unknown[0]
            raise ValueError(
                f"{book.folder} holds {len(found)} records for {len(expected)} samples of {self.name}: {len(missing)} "
                f"missing, {len(unknown)} unknown, for example {example}. Run without --score-only to complete them"
            )
        return [found[sample] for sample in expected]

    def score(self, context: EvaluationContext, publish: Publish | None = None) -> Result:
        """Score the merged records and write the result into the step's ``results.json``. Raises like `records`.

        ``publish`` is called first, because a result in the file counts as published.
        """
        records = self.records(context)
        result = self.assess(context, records)
        if publish is not None:
            publish(result, records)
        write_result(context.records, self.name, asdict(result))
        return result

    def stored(self, context: EvaluationContext) -> Result | None:
        """The result of this step, if it was already scored under this protocol from the records on disk; else None."""
        book, protocol = self._book(context), self._made_under(context)
        stored = read_results(context.records).get(self.name)
        if stored is None or book.is_of_other_weights(protocol) or book.read().keys() != set(self.sample_ids()):
            return None
        book.require_protocol(protocol)
        return Result(**checked(stored, _Stored, f"{self.name} in {RESULTS} of {context.records}"))

    def traced(self, context: EvaluationContext, records: Sequence[Record], **more: Any) -> dict[str, Any]:
        """The protocol of a `Result`: what was generated, from which checkpoint, how many, with which versions."""
        splits: dict[str, int] = {}
        for record in records:
            splits[record["split"]] = splits.get(record["split"], 0) + 1
        return self._made_under(context) | {
            "checkpoint": context.checkpoint,
            "code": code_version(),
            "step": context.step,
            "n": len(records),
            "splits": splits,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "numpy", "pillow")},
            **more,
        }

    def _made_under(self, context: EvaluationContext) -> dict[str, Any]:
        """The protocol and the weights: records of different weights must not mix."""
        return self.protocol(context) | {WEIGHTS: context.weights}

    def _book(self, context: EvaluationContext) -> RecordBook:
        return RecordBook(context.records / self.name, context.rank, {**SAMPLE, **self.record_keys})
