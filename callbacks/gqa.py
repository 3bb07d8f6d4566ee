"""GQA: compositional questions with short answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from callbacks.answers import QuestionMeasure, QuestionsConfig
from callbacks.measure import EvaluationContext, Result
from callbacks.records import Record
from datamodules.benchmarks.gqa import read_gqa
from datamodules.benchmarks.questions import Question
from modules.metrics import gqa


@dataclass(frozen=True, kw_only=True)
class GqaConfig(QuestionsConfig):
    """Where GQA lies and how it is asked."""

    images: str
    """Folder of the pictures."""
    questions: str
    """The ``testdev_balanced_questions.json``."""


class Gqa(QuestionMeasure):
    """Accuracy, over all and by type; the headline is ``accuracy``."""

    task: ClassVar[str] = "gqa"
    config: GqaConfig

    def read(self) -> list[Question]:
        """The balanced questions."""
        config = self.config
        official = config.data == "official"
        return read_gqa(Path(config.questions), Path(config.images), official=official, limit=config.limit)

    def files(self) -> list[Path]:
        """The question file."""
        return [Path(self.config.questions)]

    def is_correct(self, record: Record) -> bool:
        """By equality after normalising the answer."""
        return bool(gqa.normalise(record["raw"]) == record["gold"])

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Score with binomial errors; the baseline gives each kind of question its most frequent answer."""
        questions = {sample: question.meta for sample, question in self.questions.items()}
        metrics = gqa.score(questions, {record["sample_id"]: record["raw"] for record in records})
        return Result(
            metrics=metrics,
            standard_errors=gqa.standard_errors(questions, metrics),
            baselines=gqa.baseline(questions),
            protocol=self.traced(context, records, baseline="most frequent answer of each subset"),
        )
