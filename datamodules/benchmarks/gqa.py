"""Reader of GQA's official questions: one JSON object, question id to entry; pictures are ``<imageId>.jpg``."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.benchmarks.questions import OFFICIAL_ELSE, Question, read_json, require_images, require_keys

OFFICIAL_COUNT = 12_578
"""Questions of ``testdev_balanced_questions.json``."""
KEYS = ("question", "imageId", "answer", "isBalanced", "types", "groups", "semantic")


def read_gqa(
    questions: Path, images: Path, *, official: bool, limit: int | None = None, everything: Path | None = None
) -> list[Question]:
    """The balanced questions in ``questions``, at most the first ``limit``; `Question.meta` is the whole entry.

    ``everything`` is the file of all questions of the split. Its questions that the balanced ones entail are appended.

    Raises:
        FileNotFoundError: a question file or an image is missing.
        ValueError: an entry is missing a key, no question is balanced, an entailed question is missing, or
            ``official`` data has another number of questions.
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


def read_choices(path: Path, questions: Sequence[Question]) -> dict[str, Any]:
    """Map each question id to its ``valid`` and ``plausible`` answers, from an official ``*_choices.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another layout, or is missing one of ``questions``.
    """
    choices = read_json(path)
    ids = [question_id(question.sample_id) for question in questions if question.meta["isBalanced"]]
    require_keys(choices, ids, str(path))
    for key in ids:
        require_keys(choices[key], ("valid", "plausible"), f"question {key} of {path}")
    return {key: choices[key] for key in ids}


def question_id(sample_id: str) -> str:
    """The official id of a sample."""
    return sample_id.rpartition("/")[2]


def _read(path: Path, images: Path) -> Iterator[Question]:
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must map question ids to entries, found {type(entries).__name__}")
    split = path.stem.removesuffix("_questions")
    for key, entry in entries.items():
        require_keys(entry, KEYS, f"question {key} of {path}")
        require_keys(entry["types"], ("structural", "semantic", "detailed"), f"types of question {key} of {path}")
        require_keys(entry["groups"], ("global",), f"groups of question {key} of {path}")
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
            f"{len(missing)} questions that those of {source} entail are not in {path}, first {missing[0]}; use both "
            "from the same release"
        )
    # used for consistency only, even if they are balanced
    return [replace(question, meta={**question.meta, "isBalanced": False}) for question in more]
