"""Measures that ask the model about pictures and read its short answers."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch

from callbacks.measures.measure import EvaluationContext, Measure, MeasureConfig
from callbacks.measures.records import Record
from callbacks.tracking import Tracker
from datamodules.benchmarks.questions import Question
from datamodules.encode import encode_question
from datamodules.images import ImageSource, read_image, read_mmu_pixels
from modules.files import file_hashes
from modules.json_lines import Keys

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""LLaVA's suffix. Models are trained with it, and benchmark questions are asked with it."""
COLUMNS = ("sample_id", "split", "image", "question", "prompt", "raw", "gold", "correct")
TABLE_ROWS = 50


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig(MeasureConfig):
    """Configuration that all question benchmarks share."""

    data: Literal["official", "scenes"] = "official"
    """``scenes``: embedded data in the official format. Counts are not checked, and the measure's name ends in
    ``_style``."""
    limit: int | None = None
    """Ask only the first questions (of each split). The measure's name then ends in ``_mini``."""
    suffix: str = SHORT_ANSWER
    """Text after every question."""
    max_new_tokens: int = 16
    """Longest answer, in tokens."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = []
        if self.limit is not None and self.limit < 1:
            found.append(f"limit={self.limit} must be at least 1; null takes all questions")
        if self.max_new_tokens < 1:
            found.append(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        return found

    def reduced(self, most: int) -> Self | None:
        """The same on the first ``most`` questions."""
        return replace(self, limit=most if self.limit is None else min(most, self.limit))


class QuestionMeasure(Measure):
    """Answers every question greedily. A batch only holds prompts of equal length: a state-space model sees padding."""

    record_keys: ClassVar[Keys] = {"image": str, "question": str, "raw": str, "gold": str}
    config: QuestionsConfig

    @abstractmethod
    def read(self) -> list[Question]:
        """Read and check the benchmark's files."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The benchmark's question files."""

    @abstractmethod
    def is_correct(self, record: Record) -> bool:
        """Whether a record's answer counts as right."""

    @property
    def full_name(self) -> str:
        """The name when all official questions are asked: the key, unless there are several sets of questions."""
        return self.key

    @property
    def name(self) -> str:
        """The full name when all official questions are asked; otherwise with ``_mini`` or ``_style``.

        The small form of a ``_mini`` has it twice, because each has records of its own.
        """
        if self.config.data == "scenes":
            return f"{self.full_name}_style" + ("_mini" if self.mini else "")
        return self.full_name + "_mini" * ((self.config.limit is not None) + (self.mini and self.of_part))

    def asked(self, question: Question) -> str:
        """What the model is asked: the question with the suffix, added only if the release does not include it."""
        return question.question.removesuffix(self.config.suffix) + self.config.suffix

    @cached_property
    def questions(self) -> dict[str, Question]:
        """Sample id to question."""
        return {question.sample_id: question for question in self.read()}

    def check(self, context: EvaluationContext) -> None:
        """Read the question files, and refuse questions that are too long for the model.

        Raises:
            ValueError: a question leaves no room for an answer.
        """
        for question in self.questions.values():
            room = context.model.answer_room(len(self._prompt_ids(context, question)))
            if room < 1:
                raise ValueError(
                    f"{self.name} question {question.sample_id} is {1 - room} ids too long for a model with "
                    f"model.mmu_positions={context.model.config.mmu_positions}"
                )

    def sample_ids(self) -> Sequence[str]:
        """Ids in the order of the files."""
        return list(self.questions)

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Questions, prompt and decoding."""
        return {
            "measure": self.name,
            "template": context.template.question,
            "suffix": self.config.suffix,
            "decoding": "greedy",
            "max_new_tokens": self.config.max_new_tokens,
            "limit": self.config.limit,
            "files": file_hashes(self.files()),
        }

    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        """Answer in batches of equally long prompts."""
        asked = [(sample, self._prompt_ids(context, self.questions[sample])) for sample in ids]
        for _, group in groupby(sorted(asked, key=lambda one: len(one[1])), key=lambda one: len(one[1])):
            same_length = list(group)
            for start in range(0, len(same_length), context.batch_size):
                yield self._answer(context, same_length[start : start + context.batch_size])

    def publish(self, context: EvaluationContext, records: Sequence[Record], tracker: Tracker) -> None:
        """Log a table of answers with their pictures."""
        rows = []
        for record in table_rows(records, [self.is_correct(record) for record in records]):
            cells = record | {"image": read_image(self.questions[record["sample_id"]].image)}
            rows.append([(cells | {"correct": self.is_correct(record)})[column] for column in COLUMNS])
        tracker.log_table(context.step, f"{self.prefix}/answers", COLUMNS, rows)

    def _prompt_ids(self, context: EvaluationContext, question: Question) -> list[int]:
        return encode_question(context.tokenizer, self.asked(question), context.template)

    def _answer(self, context: EvaluationContext, batch: Sequence[tuple[str, list[int]]]) -> list[Record]:
        questions, prompts = [self.questions[sample] for sample, _ in batch], [ids for _, ids in batch]
        # fewer tokens may fit after a long question; an answer cut short by this is recorded as truncated
        most = min(self.config.max_new_tokens, context.model.answer_room(len(prompts[0])))
        answers = answer(context, [question.image for question in questions], prompts, most)
        return [
            {
                "sample_id": question.sample_id,
                "split": question.split,
                "image": question.image.name,
                "question": question.question,
                "prompt": context.template.asked(self.asked(question)),
                "raw": text,
                "gold": question.answer,
                "n_new_tokens": tokens,
                "truncated": truncated,
            }
            for question, (text, tokens, truncated) in zip(questions, answers, strict=True)
        ]


def answer(
    context: EvaluationContext, images: Sequence[ImageSource], prompts: Sequence[list[int]], max_new_tokens: int
) -> list[tuple[str, int, bool]]:
    """Greedy answers to prompts of equal length: (text, number of tokens, whether the limit cut it short).

    An answer ends before its first end token; the prompt is not part of it.
    """
    size, end = context.model.config.vision.image_size, context.tokenizer.end_of_text
    pixels = torch.stack([read_mmu_pixels(image, size) for image in images])
    rows = context.model.generate_text(
        pixels.to(context.device),
        torch.tensor(list(prompts), device=context.device),
        max_new_tokens=max_new_tokens,
        end_id=end,
    ).tolist()
    answers = []
    for row in rows:
        ids = row[: row.index(end)] if end in row else row
        answers.append((context.tokenizer.decode(ids), len(ids), end not in row))
    return answers


def stream_answer(
    context: EvaluationContext, image: ImageSource, prompt: list[int], max_new_tokens: int
) -> Iterator[tuple[str, int, bool]]:
    """`answer` to one prompt while it grows, after each token."""
    pixels = read_mmu_pixels(image, context.model.config.vision.image_size)[None]
    with torch.no_grad():
        features = context.model.vision(pixels.to(context.device))
    end = context.tokenizer.end_of_text
    ids: list[int] = []
    asked = torch.tensor([prompt], device=context.device)
    for token in context.model.stream_text(features, asked, max_new_tokens=max_new_tokens, end_id=end):
        if int(token) == end:
            yield context.tokenizer.decode(ids), len(ids), False
        else:
            ids.append(int(token))
            yield context.tokenizer.decode(ids), len(ids), True


def table_rows(records: Sequence[Record], correct: Sequence[bool], limit: int = TABLE_ROWS) -> list[Record]:
    """At most ``limit`` records: half spread evenly, so they are the same at every step, and half errors."""
    fixed = records[:: max(1, -(-len(records) // (limit // 2)))]
    shown = {record["sample_id"] for record in fixed}
    errors = [r for r, right in zip(records, correct, strict=True) if not right and r["sample_id"] not in shown]
    return [*fixed, *errors[: limit - limit // 2]]
