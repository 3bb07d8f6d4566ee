"""Reader of VQAv2's official files: a JSON of questions, and for ``val2014`` one of human answers."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from datamodules.benchmarks.questions import (
    OFFICIAL_ELSE,
    Question,
    read_json,
    require_images,
    require_keys,
)
from modules.metrics.vqav2 import ANSWER_TYPES

Split = Literal["val2014", "test-dev2015", "test2015"]
OFFICIAL_COUNTS: dict[Split, int] = {"val2014": 214_354, "test-dev2015": 107_394, "test2015": 447_793}
PEOPLE = 10
SUBSET_SEED = 21
"""Seed of the shuffle that ``limit`` cuts off, so a smaller subset is part of every larger one."""


def read_vqav2(
    questions: Path, annotations: Path | None, images: Path, *, split: Split, official: bool, limit: int | None = None
) -> list[Question]:
    """The questions of ``split``; with ``limit`` that many of them, drawn at random but the same every time.

    `Question.meta` holds ``question_id`` and, if there are annotations, ``answers`` (ten), ``answer_type`` and
    ``question_type``. Without annotations the answer is empty.

    Raises:
        FileNotFoundError: a file or an image is missing.
        ValueError: the file is of another split, questions and annotations do not match, or ``official`` data has
            another number of questions.
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


def _asked(path: Path, split: Split, *, official: bool) -> dict[int, dict[str, Any]]:
    entries = _entries(path, "questions", ("question_id", "image_id", "question"), split)
    if official and len(entries) != OFFICIAL_COUNTS[split]:
        raise ValueError(f"{path} holds {len(entries)} questions, expected {OFFICIAL_COUNTS[split]}. {OFFICIAL_ELSE}")
    return entries


def _entries(path: Path, name: str, keys: tuple[str, ...], split: Split) -> dict[int, dict[str, Any]]:
    """The entries of the list ``name``, by question id."""
    document = read_json(path)
    require_keys(document, ("data_subtype", name), str(path))
    if document["data_subtype"] != split:
        raise ValueError(f"{path} is of {document['data_subtype']!r}, expected {split!r}; name the file of that split")
    entries: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(document[name]):
        where = f"entry {number} of {name} in {path}"
        require_keys(entry, keys, where)
        key = entry["question_id"]
        if not isinstance(key, int) or key in entries:
            raise ValueError(f"{where} has the question_id {key!r}; ids must be whole numbers and unique")
        if not isinstance(entry["image_id"], int):
            raise ValueError(f"{where} has the image_id {entry['image_id']!r}; ids must be whole numbers")
        entries[key] = entry
    if not entries:
        raise ValueError(f"{path} holds no {name}")
    return entries


def _annotations(
    path: Path, questions: Path, asked: Mapping[int, dict[str, Any]], split: Split
) -> dict[int, dict[str, Any]]:
    """The annotations by question id, checked to have the questions and pictures of ``asked``."""
    keys = ("question_id", "image_id", "answers", "answer_type", "question_type", "multiple_choice_answer")
    annotations = _entries(path, "annotations", keys, split)
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
        if len(annotation["answers"]) != PEOPLE:
            raise ValueError(f"question {key} has {len(annotation['answers'])} answers in {path}, expected {PEOPLE}")
        for answer in annotation["answers"]:
            require_keys(answer, ("answer",), f"an answer to question {key} in {path}")
        if annotation["answer_type"] not in ANSWER_TYPES:
            raise ValueError(
                f"question {key} has the answer_type {annotation['answer_type']!r} in {path}, expected one of "
                f"{', '.join(ANSWER_TYPES)}"
            )
    return annotations


def _question(entry: Mapping[str, Any], annotation: Mapping[str, Any] | None, images: Path, split: Split) -> Question:
    pictures = split.replace("test-dev", "test")
    meta: dict[str, Any] = {"question_id": entry["question_id"]}
    if annotation is not None:
        meta["answers"] = tuple(one["answer"] for one in annotation["answers"])
        meta |= {key: annotation[key] for key in ("answer_type", "question_type")}
    return Question(
        benchmark="vqav2",
        split=split,
        sample_id=f"{split}/{entry['question_id']}",
        image=images / f"COCO_{pictures}_{entry['image_id']:012d}.jpg",
        question=entry["question"],
        answer="" if annotation is None else annotation["multiple_choice_answer"],
        meta=meta,
    )
