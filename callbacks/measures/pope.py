"""POPE: object hallucination, with yes/no questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from callbacks.measures.answers import QuestionMeasure, QuestionsConfig
from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.records import Record
from datamodules.benchmarks.pope import pope_files, read_pope
from datamodules.benchmarks.questions import Question
from modules.metrics import pope


@dataclass(frozen=True, kw_only=True)
class PopeConfig(QuestionsConfig):
    """Where the POPE files are, and how questions are asked. ``limit`` is per split."""

    images: str
    """Folder of the pictures."""
    folder: str
    """Folder of ``coco_pope_{random,popular,adversarial}.json``."""


class Pope(QuestionMeasure):
    """F1, accuracy and the rest on the three splits; the headline is ``f1_macro``."""

    key: ClassVar[str] = "pope"
    config_type = PopeConfig
    config: PopeConfig

    def read(self) -> list[Question]:
        """The questions of the three splits."""
        config = self.config
        official = config.data == "official"
        return read_pope(Path(config.folder), Path(config.images), official=official, limit=config.limit)

    def files(self) -> list[Path]:
        """The three question files."""
        return list(pope_files(Path(self.config.folder)).values())

    def is_correct(self, record: Record) -> bool:
        """Whether the answer, parsed as the official code does, equals the gold answer."""
        return bool(pope.parse(record["raw"]) == record["gold"])

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Score, with errors from a bootstrap over images. The baseline always says yes."""
        answers = [pope.Answer(split=r["split"], image=r["image"], text=r["raw"], label=r["gold"]) for r in records]
        metrics = pope.score(answers)
        return Result(
            metrics=metrics,
            counts=pope.counts(answers, metrics),
            standard_errors=pope.standard_errors(answers),
            baselines=pope.baseline(answers),
            protocol=self.traced(context, records, baseline="always yes"),
        )
