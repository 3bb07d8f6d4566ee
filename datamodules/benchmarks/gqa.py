"""Reader of GQA's official questions: one JSON object, question id to record; pictures are ``<imageId>.jpg``."""

from pathlib import Path

from datamodules.benchmarks.questions import OFFICIAL_ELSE, Question, read_json, require_images, require_keys

OFFICIAL_COUNT = 12_578
"""Questions of ``testdev_balanced_questions.json``."""
KEYS = ("question", "imageId", "answer", "isBalanced", "types", "groups", "semantic")


def read_gqa(questions: Path, images: Path, *, official: bool, limit: int | None = None) -> list[Question]:
    """The balanced questions in ``questions``, at most the first ``limit``; `Question.meta` is the whole record.

    Raises:
        FileNotFoundError: the question file or an image is missing.
        ValueError: a record lacks a key, no question is balanced, or ``official`` data has another number of questions.
    """
    records = read_json(questions)
    if not isinstance(records, dict):
        raise ValueError(f"{questions} must map question ids to records, found {type(records).__name__}")
    split = questions.stem.removesuffix("_questions")
    found: list[Question] = []
    for key, record in records.items():
        require_keys(record, KEYS, f"question {key} of {questions}")
        require_keys(record["types"], ("structural", "semantic"), f"types of question {key} of {questions}")
        require_keys(record["groups"], ("global",), f"groups of question {key} of {questions}")
        if record["isBalanced"]:
            found.append(
                Question(
                    task="gqa",
                    split=split,
                    sample_id=f"{split}/{key}",
                    image=images / f"{record['imageId']}.jpg",
                    question=record["question"],
                    answer=record["answer"],
                    meta=record,
                )
            )
    if official and len(found) != OFFICIAL_COUNT:
        raise ValueError(
            f"{questions} holds {len(found)} balanced questions, expected {OFFICIAL_COUNT}. {OFFICIAL_ELSE}"
        )
    if not found:
        raise ValueError(f"{questions} holds no balanced question; use a *_balanced_questions.json file")
    found = found[:limit]
    require_images((question.image for question in found), questions)
    return found
