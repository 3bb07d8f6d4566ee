"""Reader of GQA's official questions: one JSON object, question id to entry; pictures are ``<imageId>.jpg``."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from datamodules.benchmarks.questions import BENCHMARK, OFFICIAL_ELSE, Question, Text, require_images
from modules.reading import checked, read_json

OFFICIAL_COUNT = 12_578
"""Questions of ``testdev_balanced_questions.json``."""
SHOWN = 3
"""How many missing ids an error names."""

Groups = TypedDict("Groups", {"global": str | None})  # written as a call because the key is a keyword


class Types(TypedDict):
    """Kinds of a question."""

    structural: Text
    semantic: Text
    detailed: str


class Step(TypedDict):
    """A step of the reasoning."""

    operation: str
    argument: str


class Entry(TypedDict):
    """What the file says about a question."""

    question: Text
    imageId: Text
    answer: str
    isBalanced: bool
    types: Types
    groups: Groups
    semantic: list[Step]
    entailed: NotRequired[list[str]]


class Allowed(TypedDict):
    """The answers that make sense for a question."""

    valid: list[str]
    plausible: list[str]


def read_gqa(
    questions: Path, images: Path, *, official: bool, limit: int | None = None, everything: Path | None = None
) -> list[Question]:
    """The balanced questions in ``questions``, at most the first ``limit``; `Question.meta` is the whole entry.

    ``everything`` is the file of all questions of the split. Its questions that the balanced ones entail are appended.

    Raises:
        FileNotFoundError: a question file or an image is missing.
        ValueError: an entry is broken, no question is balanced, an entailed question is missing, or ``official`` data
            has another number of questions.
    """
    found = [question for question in _read(questions, images) if question.meta["isBalanced"]]
    if official and len(found) != OFFICIAL_COUNT:
        raise ValueError(
            f"{questions} holds {len(found)} balanced questions, expected {OFFICIAL_COUNT}. {OFFICIAL_ELSE}"
        )
    if not found:
        raise ValueError(f"{questions} holds no balanced question; use a *_balanced_questions.json file")
    found = found[:limit]
    if everything is not None:
        found += _entailed(found, questions, _read(everything, images), everything)
    require_images((question.image for question in found), questions)
    return found


def read_choices(path: Path, questions: Sequence[Question]) -> dict[str, Allowed]:
    """Map each question id to its ``valid`` and ``plausible`` answers, from an official ``*_choices.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another layout, or is missing one of ``questions``.
    """
    choices = read_json(path, dict[str, Any], BENCHMARK)
    ids = [question_id(question.sample_id) for question in questions if question.meta["isBalanced"]]
    missing = [key for key in ids if key not in choices]
    if missing:
        raise ValueError(
            f"{path} has no choices for {len(missing)} of {len(ids)} questions, first {', '.join(missing[:SHOWN])}; "
            "use both from the same release"
        )
    return checked({key: choices[key] for key in ids}, dict[str, Allowed], f"{BENCHMARK} {path}")


def question_id(sample_id: str) -> str:
    """The official id of a sample."""
    return sample_id.partition("/")[2]


def _read(path: Path, images: Path) -> Iterator[Question]:
    entries = read_json(path, dict[str, Entry], BENCHMARK)
    split = path.stem.removesuffix("_questions")
    for key, entry in entries.items():
        yield Question(
            benchmark="gqa",
            split=split,
            sample_id=f"{split}/{key}",
            image=images / f"{entry['imageId']}.jpg",
            question=entry["question"],
            answer=entry["answer"],
            meta=entry,
        )


def _entailed(found: Sequence[Question], source: Path, others: Iterable[Question], path: Path) -> list[Question]:
    """Those of ``others``, read from ``path``, that are entailed by a question of ``found`` and not in it."""
    there = {question_id(question.sample_id) for question in found}
    wanted = {key for question in found for key in question.meta.get("entailed", ())} - there
    more = [question for question in others if question_id(question.sample_id) in wanted]
    missing = sorted(wanted - {question_id(question.sample_id) for question in more})
    if missing:
        raise ValueError(
            f"{len(missing)} questions that those of {source} entail are not in {path}, first "
            f"{', '.join(missing[:SHOWN])}; use both from the same release"
        )
    # used for consistency only, even if they are balanced
    return [replace(question, meta={**question.meta, "isBalanced": False}) for question in more]
