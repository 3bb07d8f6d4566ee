"""MMMU: college questions in thirty subjects, most of them multiple choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from callbacks.measures.answers import QuestionMeasure, QuestionsConfig
from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.records import Record
from datamodules.benchmarks.mmmu import Split, mmmu_files, read_mmmu
from datamodules.benchmarks.questions import Question
from modules.metrics import mmmu
from modules.metrics.mmmu_answers import LETTERS

CHOICE = "\nAnswer with the option's letter from the given choices directly."
OPTION_FORMS = {"official": "({letter}) {option}\n", "lmms": "{letter}. {option}\n"}
PICTURES = "image_1 alone, in front of the text; markers like <image 2> stay in the text"
"""What the official LLaVA-1.5 evaluation does with questions on several pictures."""
T = TypeVar("T", int, float)


@dataclass(frozen=True, kw_only=True)
class MmmuConfig(QuestionsConfig):
    """Where the MMMU files are, and how questions are asked.

    ``limit`` is per subject; ``suffix`` is for open questions.
    """

    folder: str
    """Folder with ``<split>-*.parquet`` files, also in its subfolders: one file per subject, or one for all."""
    split: Split = "validation"
    """``dev``, 150 questions, is for choosing checkpoints: a set used for choosing is no longer a test."""
    style: Literal["official", "lmms"] = "official"
    """How options are written: "(A) red", or lmms-eval's "A. red"."""
    fallback_seed: int = 0
    """Seed of the guesses for answers from which no letter can be parsed."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""


class Mmmu(QuestionMeasure):
    """Accuracy, parsed as the official code does. The headline is ``val_overall``, which guesses an unreadable choice.

    ``val_overall_strict`` counts unreadable choices as wrong; ``val_n_fallback`` is their number.
    """

    key: ClassVar[str] = "mmmu"
    config_type = MmmuConfig
    config: MmmuConfig

    @property
    def full_name(self) -> str:
        """The key for the validation set."""
        return self.key if self.config.split == "validation" else f"{self.key}_dev"

    def read(self) -> list[Question]:
        """The questions of all subjects."""
        config = self.config
        return read_mmmu(
            Path(config.folder), split=config.split, official=config.data == "official", limit=config.limit
        )

    def files(self) -> list[Path]:
        """The parquet files."""
        return mmmu_files(Path(self.config.folder), self.config.split)

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Add how options are written, and that the model sees one picture."""
        more = {"choice_suffix": CHOICE, "style": self.config.style, "pictures": PICTURES}
        return super().protocol(context) | more

    def asked(self, question: Question) -> str:
        """The official LLaVA-1.5 prompt: one line per option, then the form of answer that is wanted."""
        options = question.meta["options"]
        if not options:
            return super().asked(question)
        form = OPTION_FORMS[self.config.style]
        lines = [form.format(letter=letter, option=option) for letter, option in zip(LETTERS, options, strict=False)]
        return f"{question.question}\n{''.join(lines)}{CHOICE}"

    def is_correct(self, record: Record) -> bool:
        """Whether the answer is right, parsed as the official code does."""
        return mmmu.is_correct(self._answer_of(record), seed=self.config.fallback_seed)

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Score, with binomial errors. The baseline always says A."""
        answers = [self._answer_of(record) for record in records]
        scores = mmmu.score(answers, seed=self.config.fallback_seed)
        prefix = "val" if self.config.split == "validation" else "dev"

        def named(values: dict[str, T]) -> dict[str, T]:
            return {f"{prefix}_{name}": value for name, value in values.items()}

        return Result(
            metrics=named(scores),
            counts=named(mmmu.counts(answers)),
            standard_errors=named(mmmu.standard_errors(answers, scores)),
            baselines=named(mmmu.baseline(answers)),
            protocol=self.traced(
                context,
                records,
                fallback_seed=self.config.fallback_seed,
                on_several_pictures=sum(question.meta["images"] > 1 for question in self.questions.values()),
                baseline="always A",
            ),
        )

    def _answer_of(self, record: Record) -> mmmu.Answer:
        meta = self.questions[record["sample_id"]].meta
        return mmmu.Answer(
            question_id=meta["id"],
            subject=record["split"],
            text=record["raw"],
            golds=meta["golds"],
            options=meta["options"],
        )
