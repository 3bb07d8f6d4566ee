"""Reader of MMMU's parquet files: one per subject (as published), or one for all (as merged by lmms-lab)."""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import parquet

from datamodules.benchmarks.questions import OFFICIAL_ELSE, Question, require_unique
from datamodules.images import StoredImage
from modules.metrics.mmmu import SUBJECTS
from modules.metrics.mmmu_answers import LETTERS

Split = Literal["validation", "dev"]
OFFICIAL_COUNTS: dict[Split, int] = {"validation": 30, "dev": 5}
"""Questions of each subject."""
COLUMNS = ("id", "question", "options", "answer", "question_type", "image_1")
MULTIPLE_CHOICE = "multiple-choice"


def mmmu_files(folder: Path, split: Split) -> list[Path]:
    """The parquet files of a split.

    Raises:
        FileNotFoundError: there is none.
    """
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"no {split}-*.parquet in or below {folder}; expected one in the folder of each subject, or one for all"
        )
    return files


def read_mmmu(folder: Path, *, split: Split, official: bool, limit: int | None = None) -> list[Question]:
    """The questions below ``folder``, at most the first ``limit`` of each subject, each with its first picture.

    `Question.split` is the subject. `Question.meta` holds ``id``, ``options`` (empty for an open question), ``golds``
    (the correct answers) and ``images`` (the number of pictures).

    Raises:
        FileNotFoundError: there is no parquet file of the split.
        ValueError: a row is broken or repeated, or ``official`` data has another number of questions in a subject.
    """
    found = [question for path in mmmu_files(folder, split) for question in _read(path)]
    counts = Counter(question.split for question in found)
    for subject in SUBJECTS if official else ():
        if counts[subject] != OFFICIAL_COUNTS[split]:
            raise ValueError(
                f"the {split} files below {folder} hold {counts[subject]} questions of {subject}, expected "
                f"{OFFICIAL_COUNTS[split]} of each of {len(SUBJECTS)} subjects. {OFFICIAL_ELSE}"
            )
    require_unique(found, folder)
    taken: Counter[str] = Counter()
    kept = []
    for question in found:
        taken[question.split] += 1
        if limit is None or taken[question.split] <= limit:
            kept.append(question)
    if not kept:
        raise ValueError(f"the {split} files below {folder} hold no question")
    return kept


def _read(path: Path) -> Iterator[Question]:
    try:
        file = parquet.ParquetFile(path)
        missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path} is missing the columns {', '.join(missing)}; expected {', '.join(COLUMNS)}")
        for batch in file.iter_batches(batch_size=16):
            yield from (_question(row, path) for row in batch.to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a complete parquet file ({error}); fetch it again") from error


def _question(row: Mapping[str, Any], path: Path) -> Question:
    name = str(row["id"])
    where = f"question {name} of {path}"
    subject = "_".join(name.split("_")[1:-1])
    if subject not in SUBJECTS:
        raise ValueError(f"{where} has no known subject; an id looks like validation_Accounting_1")
    images = [row[key] for key in row if key.startswith("image_") and row[key] and row[key]["bytes"]]
    first = row["image_1"]
    if not first or not first["bytes"]:
        raise ValueError(f"{where} has no image_1; the model looks at one picture")
    options: tuple[str, ...] = ()
    if row["question_type"] == MULTIPLE_CHOICE:
        options = _texts(row["options"], f"the options of {where}")
        if len(options) > len(LETTERS):
            raise ValueError(f"{where} has {len(options)} options, expected at most {len(LETTERS)}: {LETTERS}")
    golds = _golds(row["answer"], options, where)
    return Question(
        benchmark="mmmu",
        split=subject,
        sample_id=f"{subject}/{name}",
        image=StoredImage(name=first.get("path") or f"{name}_1", payload=first["bytes"], where=f"image_1 of {where}"),
        question=row["question"],
        answer=row["answer"],
        meta={"id": name, "options": options, "golds": golds, "images": len(images)},
    )


def _golds(answer: str, options: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The correct answers; an open question with several has them as a list."""
    if options:
        letters = LETTERS[: len(options)]
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"{where} has the answer {answer!r}, expected one of the letters {letters}")
        return (answer,)
    return _texts(answer, f"the answer of {where}") if answer.startswith("[") else (answer,)


def _texts(cell: str, what: str) -> tuple[str, ...]:
    """The strings of a list in Python's notation."""
    try:
        values = ast.literal_eval(cell)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{what} must be a list in Python's notation ({error}), found {cell!r}") from error
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{what} must be a list of texts, found {cell!r}")
    return tuple(values)
