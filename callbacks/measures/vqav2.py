"""VQAv2: short open answers. ``val2014`` is scored here; answers to a test split are written to a file for EvalAI."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from callbacks.measures.answers import QuestionMeasure, QuestionsConfig
from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.records import Record
from callbacks.tracking import Tracker
from datamodules.benchmarks.questions import Question
from datamodules.benchmarks.vqav2 import Split, question_ids, read_vqav2
from modules.files import write_json
from modules.metrics import vqav2
from modules.metrics.vqa_answers import evalai_form

T = TypeVar("T", int, float)
AGREED = 0.5
"""In tables, an answer counts as right from this accuracy on: about two of ten people gave it."""


@dataclass(frozen=True, kw_only=True)
class VqaV2Config(QuestionsConfig):
    """Where the VQAv2 files are, and how questions are asked.

    ``limit`` draws that many questions. A smaller limit draws a subset of a larger one.
    """

    images: str
    """Folder of the pictures, ``COCO_val2014_*.jpg`` or ``COCO_test2015_*.jpg``."""
    questions: str
    """``v2_OpenEnded_mscoco_<split>_questions.json``."""
    split: Split = "val2014"
    """Which split the questions are of."""
    annotations: str = ""
    """``v2_mscoco_val2014_annotations.json``. Empty for a test split: only EvalAI has its answers."""
    submission_questions: str = ""
    """The test2015 question file. EvalAI wants an entry for each of its questions, even if only test-dev was asked.
    Empty: the submission holds only the questions that were asked."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        test = self.split != "val2014"
        if test == bool(self.annotations):
            rule = "must be empty: its answers are not public" if test else "is empty; name the annotations JSON"
            found.append(f"split={self.split}, annotations={self.annotations!r} {rule}")
        if test and self.limit is not None:
            found.append(f"limit={self.limit} with split={self.split}: a submission is of all questions; set null")
        if self.submission_questions and not test:
            found.append("submission_questions belongs to a test split; val2014 is scored here")
        return found

    def reduced(self, most: int) -> Self | None:
        """None for a test split: EvalAI takes all answers or none."""
        return super().reduced(most) if self.annotations else None


class VqaV2(QuestionMeasure):
    """Accuracy against ten people's answers. The headline is ``val_overall``, or ``val_<n>_overall`` with a limit.

    ``val_overall_normalised`` normalises answers even if all people agree, as other harnesses do. A test split has no
    metrics but a file, ``submission_<split>.json``, in the folder of its records.
    """

    key: ClassVar[str] = "vqav2"
    config_type = VqaV2Config
    config: VqaV2Config

    @property
    def full_name(self) -> str:
        """The key, with the split for a test split."""
        return self.key if self.config.annotations else f"{self.key}_{self.config.split}"

    def read(self) -> list[Question]:
        """The questions, with people's answers if there are any."""
        config = self.config
        return read_vqav2(
            Path(config.questions),
            Path(config.annotations) if config.annotations else None,
            Path(config.images),
            split=config.split,
            official=config.data == "official",
            limit=config.limit,
        )

    def files(self) -> list[Path]:
        """Questions and annotations."""
        return [Path(path) for path in (self.config.questions, self.config.annotations) if path]

    def is_correct(self, record: Record) -> bool:
        """Whether enough people gave this answer."""
        return vqav2.accuracy(*self._compared(record)) >= AGREED

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Score like the official code. The baseline gives each kind of question its most frequent answer."""
        if not self.config.annotations:
            return self._submit(context, records)
        answers = [self._answer_of(record) for record in records]
        prefix = "val" if self.config.limit is None else f"val_{len(records)}"

        def named(values: dict[str, T], normalised: dict[str, T]) -> dict[str, T]:
            values = values | {"overall_normalised": normalised["overall"]}
            return {f"{prefix}_{name}": value for name, value in values.items()}

        return Result(
            metrics=named(vqav2.score(answers), vqav2.score(answers, unanimous_skip=False)),
            counts=named(counts := vqav2.counts(answers), counts),
            standard_errors=named(vqav2.standard_errors(answers), vqav2.standard_errors(answers, unanimous_skip=False)),
            baselines=named(vqav2.baseline(answers), vqav2.baseline(answers, unanimous_skip=False)),
            protocol=self.traced(
                context,
                records,
                predictions="in the form of EvalAIAnswerProcessor",
                baseline="most frequent answer of each subset",
            ),
        )

    def publish(self, context: EvaluationContext, records: Sequence[Record], tracker: Tracker) -> None:
        """Log a table of answers, if the right ones are known."""
        if self.config.annotations:
            super().publish(context, records, tracker)

    def _submit(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        config = self.config
        predictions = {
            self.questions[record["sample_id"]].meta["question_id"]: evalai_form(record["raw"]) for record in records
        }
        wanted = list(predictions)
        if config.submission_questions:
            official = config.data == "official"
            wanted = question_ids(Path(config.submission_questions), split="test2015", official=official)
        path = context.records / self.name / f"submission_{config.split}.json"
        write_json(path, vqav2.submission(predictions, wanted))
        protocol = self.traced(context, records, submission=path.name, entries=len(wanted))
        return Result(metrics={}, standard_errors={}, baselines={}, protocol=protocol)

    def _compared(self, record: Record) -> tuple[str, Sequence[str]]:
        return evalai_form(record["raw"]), self.questions[record["sample_id"]].meta["answers"]

    def _answer_of(self, record: Record) -> vqav2.Answer:
        text, humans = self._compared(record)
        meta = self.questions[record["sample_id"]].meta
        return vqav2.Answer(
            text=text, humans=humans, answer_type=meta["answer_type"], question_type=meta["question_type"]
        )
