"""GQA: compositional questions with short answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from callbacks.measures.answers import QuestionMeasure, QuestionsConfig
from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.records import Record
from datamodules.benchmarks.gqa import question_id, read_choices, read_gqa
from datamodules.benchmarks.questions import Question
from modules.files import file_hashes
from modules.metrics import gqa


@dataclass(frozen=True, kw_only=True)
class GqaConfig(QuestionsConfig):
    """Where the GQA files are, and how questions are asked."""

    images: str
    """Folder of the pictures."""
    questions: str
    """The ``testdev_balanced_questions.json``."""
    all_questions: str = ""
    """The ``testdev_all_questions.json``: also ask what the balanced questions entail, for ``consistency``."""
    choices: str = ""
    """A ``*_choices.json``, for ``validity`` and ``plausibility``. None was released for testdev."""


class Gqa(QuestionMeasure):
    """Accuracy, overall and by type; the headline is ``accuracy``."""

    key: ClassVar[str] = "gqa"
    config_type = GqaConfig
    config: GqaConfig

    def read(self) -> list[Question]:
        """The balanced questions, and what they entail if the file of all questions is given."""
        config = self.config
        return read_gqa(
            Path(config.questions),
            Path(config.images),
            official=config.data == "official",
            limit=config.limit,
            everything=Path(config.all_questions) if config.all_questions else None,
        )

    def files(self) -> list[Path]:
        """The question files."""
        return [Path(path) for path in (self.config.questions, self.config.all_questions) if path]

    def check(self, context: EvaluationContext) -> None:
        """Check also the choices."""
        super().check(context)
        self._choices()

    def is_correct(self, record: Record) -> bool:
        """Whether the normalised answer equals the gold answer."""
        return bool(gqa.normalise(record["raw"]) == record["gold"])

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Score, with binomial errors. The baseline gives each kind of question its most frequent answer."""
        questions = {question_id(sample): question.meta for sample, question in self.questions.items()}
        predictions = {question_id(record["sample_id"]): record["raw"] for record in records}
        metrics = gqa.score(questions, predictions, self._choices())
        return Result(
            metrics=metrics,
            counts=gqa.counts(questions, predictions, metrics),
            standard_errors=gqa.standard_errors(questions, metrics),
            baselines=gqa.baseline(questions),
            protocol=self.traced(
                context,
                records,
                choices=file_hashes([Path(self.config.choices)] if self.config.choices else []),
                baseline="most frequent answer of each subset",
            ),
        )

    def _choices(self) -> dict[str, Any] | None:
        return read_choices(Path(self.config.choices), list(self.questions.values())) if self.config.choices else None
