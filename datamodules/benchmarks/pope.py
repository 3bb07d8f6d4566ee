"""Reader of POPE's official files: ``coco_pope_{random,popular,adversarial}.json``, JSON lines despite their name."""

from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from datamodules.benchmarks.questions import BENCHMARK, OFFICIAL_ELSE, Question, Text, require_images
from modules.reading import read_json_lines

SPLITS = ("random", "popular", "adversarial")
OFFICIAL_COUNTS = {"random": (3000, 2910), "popular": (3000,), "adversarial": (3000,)}
"""Questions per file; ``random`` was released twice, and published results use either."""
OFFICIAL_YES = 1500
"""Questions per file with the answer yes, also in the shorter ``random``."""


class Entry(TypedDict):
    """A line of a file."""

    question_id: int
    image: Text
    text: Text
    label: Literal["yes", "no"]


def pope_files(folder: Path) -> dict[str, Path]:
    """The file of each split."""
    return {split: folder / f"coco_pope_{split}.json" for split in SPLITS}


def read_pope(folder: Path, images: Path, *, official: bool, limit: int | None = None) -> list[Question]:
    """Questions of the three splits, at most the first ``limit`` of each; ``official`` data must be complete.

    Raises:
        FileNotFoundError: a question file or an image is missing.
        ValueError: a line is broken, a question id occurs twice, or ``official`` data has another number of questions
            or of questions with the label yes.
    """
    questions: list[Question] = []
    for split, path in pope_files(folder).items():
        found = _read_split(split, path, images)
        expected = OFFICIAL_COUNTS[split]
        if official and len(found) not in expected:
            wanted = " or ".join(str(count) for count in expected)
            raise ValueError(f"{path} holds {len(found)} questions, expected {wanted}. {OFFICIAL_ELSE}")
        yes = sum(question.answer == "yes" for question in found)
        if official and yes != OFFICIAL_YES:
            raise ValueError(
                f"{path} holds {yes} questions with the label yes, expected {OFFICIAL_YES}. {OFFICIAL_ELSE}"
            )
        if not found:
            raise ValueError(f"{path} holds no question")
        found = found[:limit]
        require_images((question.image for question in found), path)
        questions += found
    return questions


def _read_split(split: str, path: Path, images: Path) -> list[Question]:
    questions: dict[str, Question] = {}
    for where, entry in read_json_lines(path, Entry, BENCHMARK):
        question = _question(split, entry, images)
        if question.sample_id in questions:
            raise ValueError(f"{where} repeats question {question.sample_id}; ids must be unique")
        questions[question.sample_id] = question
    return list(questions.values())


def _question(split: str, entry: Entry, images: Path) -> Question:
    return Question(
        benchmark="pope",
        split=split,
        sample_id=f"{split}/{entry['question_id']}",
        image=images / entry["image"],
        question=entry["text"],
        answer=entry["label"],
    )
