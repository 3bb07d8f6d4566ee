"""What a data set holds: sizes, lengths, padding, repeated pictures, and pictures used in evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.inspection.evaluation_images import EvaluationImages
from datamodules.inspection.findings import (
    MMU_FRAME,
    MMU_LENGTH,
    T2I_FRAME,
    T2I_LENGTH,
    Findings,
    SurveyConfig,
    add_sample,
)
from datamodules.inspection.verify import PICTURES, in_processes
from datamodules.shards.reader import ShardSet
from modules.omnimamba.tokenizer import TextTokenizer

_EXAMPLES = 20


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A distribution."""

    mean: float
    median: float
    p90: float
    max: float
    total: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Summary | None":
        """The summary of ``values``; None if there are none."""
        if not values.size:
            return None
        median, p90 = np.percentile(values, [50, 90])
        return cls(
            mean=float(values.mean()),
            median=float(median),
            p90=float(p90),
            max=float(values.max()),
            total=float(values.sum()),
        )


@dataclass(frozen=True, kw_only=True)
class Padding:
    """The cost of giving every text the same length."""

    length: int
    """Fixed length of every text in ids."""
    others: int
    """Positions of a sequence that are not text: special ids and image."""
    cut: int
    """Texts that are longer and lose their end."""
    no_room: int
    """Conversations whose first question alone is too long; training refuses them."""
    text_waste: float
    """Share of the text positions that are padding."""
    sequence_waste: float
    """Share of all positions that are padding."""
    positions_fixed: float
    """Mean positions of a sequence with this length."""
    positions_packed: float
    """Mean positions of a sequence without padding."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Samples whose picture is also used in evaluation."""

    by_name: int
    by_content: int | None
    """None: no pictures were given for comparison, or the samples hold none."""
    keys: list[str]
    """The first of these samples."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a data set holds."""

    samples: int
    shards: int
    bytes: int
    payloads: dict[str, Summary]
    """Bytes of each extension."""
    width: Summary | None
    height: Summary | None
    captions: Summary | None
    """Captions per image."""
    turns: Summary | None
    """Question-answer pairs per conversation."""
    text_ids: Summary | None
    """Ids per text: a conversation as the model sees it, without the leading special ids, or a caption."""
    padding: Padding | None
    repeated_contents: int
    """Samples with the same picture (or codes), byte for byte, as an earlier one."""
    repeated_names: int
    """Samples that name the same picture as an earlier one."""
    spelled: int
    """Texts that spell a special token, such as ``<|endoftext|>``; they are read as plain text."""
    unreadable: int
    """Samples whose text or picture cannot be read; ``verify --decode`` names them."""
    overlap: Overlap | None


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Samples to look at."""

    manifest: str
    cache: str | None
    start: int
    stop: int
    config: SurveyConfig


def survey(
    manifest: str | Path,
    cache: str | Path | None = None,
    config: SurveyConfig | None = None,
    evaluation: EvaluationImages | None = None,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Read every sample once and summarize them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: ``config`` breaks a rule, or the data set is damaged.
    """
    config = config or SurveyConfig()
    if problems := config.problems():
        raise ValueError("; ".join(problems))
    shards = ShardSet.open(manifest, cache)
    place, folder = str(manifest), None if cache is None else str(cache)
    bounds = np.append(shards.starts, len(shards)).tolist()
    parts = [
        _Part(manifest=place, cache=folder, start=start, stop=stop, config=config) for start, stop in pairwise(bounds)
    ]
    found = Findings()
    for number, one in enumerate(in_processes(_look_at, parts, processes), start=1):
        for name, values in vars(one).items():
            total = getattr(found, name)
            total += values  # in place if it is a list
            setattr(found, name, total)
        if progress is not None:
            progress(number, len(parts))
    return _summed(shards, found, config, evaluation)


@lru_cache(maxsize=1)
def _opened(manifest: str, cache: str | None) -> ShardSet:
    return ShardSet.open(manifest, cache)


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> TextTokenizer:
    return TextTokenizer(path)


def _look_at(part: _Part) -> Findings:
    shards = _opened(part.manifest, part.cache)
    tokenizer = _tokenizer(part.config.tokenizer) if part.config.tokenizer else None
    found = Findings()
    for i in range(part.start, part.stop):
        add_sample(found, shards.get(i), tokenizer, part.config)
    shards.close()
    return found


def _summed(shards: ShardSet, found: Findings, config: SurveyConfig, evaluation: EvaluationImages | None) -> Survey:
    named = np.array(found.files, dtype=np.uint64)
    named = named[named != 0]
    contents = np.array(found.contents, dtype=np.uint64)
    return Survey(
        samples=len(shards),
        shards=len(shards.starts),
        bytes=shards.n_bytes,
        payloads={name: made for name in shards.fields if (made := Summary.of(shards.sizes(name)))},
        width=Summary.of(np.array(found.widths)),
        height=Summary.of(np.array(found.heights)),
        captions=Summary.of(np.array(found.captions)),
        turns=Summary.of(np.array(found.turns)),
        text_ids=Summary.of(np.array(found.lengths)),
        padding=_padding(shards, found, config) if found.kept else None,
        repeated_contents=len(contents) - len(np.unique(contents)),
        repeated_names=len(named) - len(np.unique(named)),
        spelled=found.spelled,
        unreadable=found.unreadable,
        overlap=_overlap(shards, found, contents, evaluation) if evaluation else None,
    )


def _padding(shards: ShardSet, found: Findings, config: SurveyConfig) -> Padding:
    if found.turns:
        length, others = config.length or MMU_LENGTH, MMU_FRAME + config.image_positions
    else:
        codes = int(shards.sizes("vq")[0]) // 2 if "vq" in shards.fields else 0
        length, others = config.length or T2I_LENGTH, T2I_FRAME + codes
    kept = float(np.mean(found.kept))
    return Padding(
        length=length,
        others=others,
        cut=sum(each > length for each in found.lengths) - found.no_room,
        no_room=found.no_room,
        text_waste=1 - kept / length,
        sequence_waste=(length - kept) / (length + others),
        positions_fixed=float(length + others),
        positions_packed=kept + others,
    )


def _overlap(shards: ShardSet, found: Findings, contents: NDArray[np.uint64], evaluation: EvaluationImages) -> Overlap:
    by_name = np.isin(np.array(found.names, dtype=np.uint64), evaluation.names)
    comparable = bool(evaluation.contents.size) and any(kind in shards.fields for kind in PICTURES)
    by_content = np.isin(contents, evaluation.contents) if comparable else np.zeros_like(by_name)
    places = np.flatnonzero(by_name | by_content)
    return Overlap(
        by_name=int(by_name.sum()),
        by_content=int(by_content.sum()) if comparable else None,
        keys=[shards.key(int(place)) for place in places[:_EXAMPLES]],
    )
