"""Reader of MMMU's parquet files: one per subject (as published), or one for all (as merged by lmms-lab)."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import parquet
from typing_extensions import TypedDict

from datamodules.benchmarks.questions import (
    BENCHMARK,
    OFFICIAL_ELSE,
    Question,
    Text,
    require_columns,
    require_unique,
)
from datamodules.images import StoredImage
from modules.folders import files_below
from modules.metrics.mmmu import SUBJECTS
from modules.metrics.mmmu_answers import LETTERS
from modules.reading import checked, require_file, shown

Split = Literal["validation", "dev"]
OFFICIAL_COUNTS: dict[Split, int] = {"validation": 30, "dev": 5}
"""Questions of each subject."""


class Picture(TypedDict):
    """A cell that holds a picture."""

    bytes: bytes | None
    path: str | None


class Row(TypedDict):
    """A row, without its pictures."""

    id: Text
    question: Text
    options: str
    answer: Text
    question_type: Text
    """``multiple-choice``; any other word means an open question."""


COLUMNS = (*Row.__annotations__, "image_1")


def mmmu_files(folder: Path, split: Split) -> list[Path]:
    """The parquet files of a split.

    Raises:
        FileNotFoundError: there is none.
    """
    files = [path for path in files_below(folder) if path.match(f"{split}-*.parquet")]
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
    require_unique([question.sample_id for question in found], "question", folder)
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
    require_file(path, BENCHMARK)
    number = 0
    try:
        file = parquet.ParquetFile(path)
        require_columns(file.schema_arrow.names, COLUMNS, path)
        for batch in file.iter_batches(batch_size=16):
            for row in batch.to_pylist():
                yield _question(checked(row, Row, f"row {number} of {BENCHMARK} {path}"), row, path)
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a complete parquet file ({error}); fetch it again") from error


def _question(row: Row, cells: dict[str, Any], path: Path) -> Question:
    where = f"question {row['id']} of {path}"
    subject = "_".join(row["id"].split("_")[1:-1])
    if subject not in SUBJECTS:
        raise ValueError(f"{where} has no known subject; an id looks like validation_Accounting_1")
    images = {key: cell for key, cell in cells.items() if re.fullmatch(r"image_\d+", key)}
    images = {key: image for key, image in checked(images, dict[str, Picture | None], where).items() if image}
    if not (payload := images.get("image_1", {}).get("bytes")):
        raise ValueError(f"{where} has no image_1; the model looks at one picture")
    options = _texts(row["options"], f"the options of {where}") if row["question_type"] == "multiple-choice" else ()
    if len(options) > len(LETTERS):
        raise ValueError(f"{where} has {len(options)} options, expected at most {len(LETTERS)}: {LETTERS}")
    name = images["image_1"]["path"] or f"{row['id']}_1"
    return Question(
        benchmark="mmmu",
        split=subject,
        sample_id=f"{subject}/{row['id']}",
        image=StoredImage(name=name, payload=payload, where=f"image_1 of {where}"),
        question=row["question"],
        answer=row["answer"],
        meta={
            "id": row["id"],
            "options": options,
            "golds": _golds(row["answer"], options, where),
            "images": sum(bool(image["bytes"]) for image in images.values()),
        },
    )


def _golds(answer: str, options: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The correct answers; an open question with several has them as a list."""
    if options:
        letters = LETTERS[: len(options)]
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"{where} has the answer {answer!r}, expected one of the letters {letters}")
        return (answer,)
    return _texts(answer, f"the answer of {where}") if answer.startswith("[") else (answer,)


def _texts(cell: str, where: str) -> tuple[str, ...]:
    """The strings of a list in Python's notation."""
    try:
        values = ast.literal_eval(cell)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two if it is nested deeply
        raise ValueError(f"{where} must be a list in Python's notation ({error}), found {shown(cell)}") from error
    if not checked(values, list[str], where):
        raise ValueError(f"{where} must be a list of texts, found {shown(cell)}")
    return tuple(values)
