"""Reader of VQAv2's official files: a JSON of questions, and for ``val2014`` one of human answers."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Len, MinLen
from typing_extensions import TypedDict

from datamodules.benchmarks.questions import (
    BENCHMARK,
    OFFICIAL_ELSE,
    Question,
    Text,
    require_images,
    require_unique,
)
from modules.metrics.vqav2 import AnswerType
from modules.reading import read_json

Split = Literal["val2014", "test-dev2015", "test2015"]
OFFICIAL_COUNTS: dict[Split, int] = {"val2014": 214_354, "test-dev2015": 107_394, "test2015": 447_793}
PEOPLE = 10
SUBSET_SEED = 21
"""Seed of the shuffle that ``limit`` cuts off, so a smaller subset is part of every larger one."""


class Asked(TypedDict):
    """An entry of a question file."""

    question_id: int
    image_id: Annotated[int, Ge(0)]
    question: Text


class Given(TypedDict):
    """A person's answer."""

    answer: str


class Annotation(TypedDict):
    """An entry of an annotation file."""

    question_id: int
    image_id: int
    answers: Annotated[list[Given], Len(PEOPLE, PEOPLE)]
    answer_type: AnswerType
    question_type: str
    multiple_choice_answer: str


class QuestionFile(TypedDict):
    """A file of questions."""

    data_subtype: str
    questions: Annotated[list[Asked], MinLen(1)]


class AnnotationFile(TypedDict):
    """A file of people's answers."""

    data_subtype: str
    annotations: Annotated[list[Annotation], MinLen(1)]


def read_vqav2(
    questions: Path, annotations: Path | None, images: Path, *, split: Split, official: bool, limit: int | None = None
) -> list[Question]:
    """The questions of ``split``; with ``limit`` that many of them, drawn at random but the same every time.

    `Question.meta` holds ``question_id`` and, if there are annotations, ``answers`` (ten), ``answer_type`` and
    ``question_type``. Without annotations the answer is empty.

    Raises:
        FileNotFoundError: a file or an image is missing.
        ValueError: an entry is broken, the file is of another split, questions and annotations do not match, or
            ``official`` data has another number of questions.
    """
    entries = _asked(questions, split, official=official)
    answers = {} if annotations is None else _annotations(annotations, questions, entries, split)
    kept = sorted(entries)
    if limit is not None:
        random.Random(SUBSET_SEED).shuffle(kept)
        kept = kept[:limit]
    found = [_question(entries[key], answers.get(key), images, split) for key in kept]
    require_images((question.image for question in found), questions)
    return found


def question_ids(questions: Path, *, split: Split, official: bool) -> list[int]:
    """The ids in a question file, in its order; raises like `read_vqav2`."""
    return list(_asked(questions, split, official=official))


def _asked(path: Path, split: Split, *, official: bool) -> dict[int, Asked]:
    file = read_json(path, QuestionFile, BENCHMARK)
    _require_split(file["data_subtype"], split, path)
    require_unique([entry["question_id"] for entry in file["questions"]], "question_id", path)
    entries = {entry["question_id"]: entry for entry in file["questions"]}
    if official and len(entries) != OFFICIAL_COUNTS[split]:
        raise ValueError(f"{path} holds {len(entries)} questions, expected {OFFICIAL_COUNTS[split]}. {OFFICIAL_ELSE}")
    return entries


def _require_split(found: str, split: Split, path: Path) -> None:
    if found != split:
        raise ValueError(f"{path} is of {found!r}, expected {split!r}; name the file of that split")


def _annotations(path: Path, questions: Path, asked: Mapping[int, Asked], split: Split) -> dict[int, Annotation]:
    """The annotations by question id, checked to have the questions and pictures of ``asked``."""
    file = read_json(path, AnnotationFile, BENCHMARK)
    _require_split(file["data_subtype"], split, path)
    require_unique([entry["question_id"] for entry in file["annotations"]], "question_id", path)
    annotations = {entry["question_id"]: entry for entry in file["annotations"]}
    different = sorted(asked.keys() ^ annotations.keys())
    if different:
        raise ValueError(
            f"{path} annotates {len(annotations)} questions, {questions} asks {len(asked)}; {len(different)} are in "
            f"only one of them, first {different[0]}. Use both from the same release"
        )
    for key, annotation in annotations.items():
        if annotation["image_id"] != asked[key]["image_id"]:
            raise ValueError(
                f"question {key} is on image {asked[key]['image_id']} in {questions}, on {annotation['image_id']} in "
                f"{path}; use both from the same release"
            )
    return annotations


def _question(entry: Asked, annotation: Annotation | None, images: Path, split: Split) -> Question:
    pictures = split.replace("test-dev", "test")
    meta: dict[str, Any] = {"question_id": entry["question_id"]}
    if annotation is not None:
        meta["answers"] = tuple(one["answer"] for one in annotation["answers"])
        meta |= {"answer_type": annotation["answer_type"], "question_type": annotation["question_type"]}
    return Question(
        benchmark="vqav2",
        split=split,
        sample_id=f"{split}/{entry['question_id']}",
        image=images / f"COCO_{pictures}_{entry['image_id']:012d}.jpg",
        question=entry["question"],
        answer="" if annotation is None else annotation["multiple_choice_answer"],
        meta=meta,
    )
