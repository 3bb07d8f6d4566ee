"""Reader of MME: the official folder of fourteen categories, or the table ``MME.tsv`` with base64 pictures."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
from pyarrow import csv
from typing_extensions import TypedDict

from datamodules.benchmarks.questions import (
    BENCHMARK,
    OFFICIAL_ELSE,
    Question,
    Text,
    require_columns,
    require_unique,
)
from datamodules.images import ImageSource, StoredImage
from modules.folders import without_macos
from modules.reading import checked, read_lines, require_file

OFFICIAL_IMAGES = {
    "existence": 30,
    "count": 30,
    "position": 30,
    "color": 30,
    "posters": 147,
    "celebrity": 170,
    "scene": 200,
    "landmark": 200,
    "artwork": 200,
    "OCR": 20,
    "commonsense_reasoning": 70,
    "numerical_calculation": 20,
    "text_translation": 20,
    "code_reasoning": 20,
}
"""Category to its number of pictures, with two questions each."""
ENDINGS = (".jpg", ".jpeg", ".png")
BLOCK = 2**26
"""Bytes of the table that are parsed at a time; a row must fit into it."""
LONGEST_INDEX = 64
"""A picture cell of at most this length holds the index of the row that has the picture."""


class Row(TypedDict):
    """A row of the table."""

    index: Text
    image: Text
    question: Text
    answer: Text
    category: Text
    image_path: Text


COLUMNS = tuple(Row.__annotations__)


def read_mme(source: Path, *, official: bool, limit: int | None = None) -> list[Question]:
    """The questions in the folder or table ``source``, at most those on the first ``limit`` pictures of each category.

    `Question.split` is the category.

    Raises:
        FileNotFoundError: the source or a picture is missing.
        ValueError: a line is broken, a picture does not have two questions, or ``official`` data has another number
            of pictures in a category.
    """
    questions: dict[str, dict[str, list[Question]]] = {category: {} for category in OFFICIAL_IMAGES}
    for question in _folder(source) if source.is_dir() else _table(source):
        questions[question.split].setdefault(question.image.name, []).append(question)
    for category, images in questions.items():
        if official and len(images) != OFFICIAL_IMAGES[category]:
            raise ValueError(
                f"{source} holds {len(images)} pictures of {category}, expected {OFFICIAL_IMAGES[category]}. "
                f"{OFFICIAL_ELSE}"
            )
        for name, pair in images.items():
            if len(pair) != 2:
                raise ValueError(f"{source} holds {len(pair)} questions on {category}/{name}, expected 2")
    found = [one for images in questions.values() for pair in list(images.values())[:limit] for one in pair]
    if not found:
        raise ValueError(f"{source} holds no question of a category of MME: {', '.join(OFFICIAL_IMAGES)}")
    return found


def mme_files(source: Path) -> list[Path]:
    """The files with the questions: the table, or the text files of the folder."""
    return [path for _, path, _ in _texts(source)] if source.is_dir() else [source]


def _folder(source: Path) -> Iterator[Question]:
    for category, path, pictures in _texts(source):
        images = [pictures / f"{path.stem}{ending}" for ending in ENDINGS]
        image = next((image for image in images if image.is_file()), None)
        if image is None:
            raise FileNotFoundError(f"{path} asks about a missing picture: {images[0]}, also not as .jpeg or .png")
        for number, (where, line) in enumerate(read_lines(path, BENCHMARK), start=1):
            question, tab, label = line.strip().partition("\t")
            if not tab:
                raise ValueError(f"{where} must be a question, a tab and Yes or No, found {line!r}")
            yield _question(category, image, number, question, label.strip(), where)


def _texts(source: Path) -> Iterator[tuple[str, Path, Path]]:
    """Category, file with the two questions on a picture, folder of the picture."""
    inner = source / "MME_Benchmark"
    root = inner if inner.is_dir() else source
    for category in OFFICIAL_IMAGES:
        folder = root / category
        apart = (folder / "questions_answers_YN").is_dir()
        texts, pictures = (folder / "questions_answers_YN", folder / "images") if apart else (folder, folder)
        found = without_macos(list(texts.glob("*.txt")), texts)
        yield from ((category, path, pictures) for path in sorted(found))


def _table(path: Path) -> Iterator[Question]:
    rows = _rows(path)
    first: dict[tuple[str, str], StoredImage] = {}
    seen: dict[tuple[str, str], int] = {}
    for index, row in rows.items():
        where = f"row {index} of {path}"
        if row["category"] not in OFFICIAL_IMAGES:
            raise ValueError(f"{where} has the category {row['category']!r}; known are {', '.join(OFFICIAL_IMAGES)}")
        name = Path(row["image_path"]).name
        key = row["category"], name
        if key not in first:
            first[key] = StoredImage(name=name, payload=_payload(rows, index, where), where=f"in {where}")
        seen[key] = seen.get(key, 0) + 1
        yield _question(row["category"], first[key], seen[key], row["question"], row["answer"], where)


def _rows(path: Path) -> dict[str, Row]:
    """Index to row."""
    require_file(path, BENCHMARK)
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(block_size=BLOCK),
            parse_options=csv.ParseOptions(delimiter="\t", newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a table of tab-separated values ({error}); fetch it again") from error
    require_columns(table.column_names, COLUMNS, path)
    rows: list[Row] = [
        checked(row, Row, f"row {row['index']} of {BENCHMARK} {path}") for row in table.select(COLUMNS).to_pylist()
    ]
    require_unique([row["index"] for row in rows], "index", path)
    return {row["index"]: row for row in rows}


def _payload(rows: Mapping[str, Row], index: str, where: str) -> bytes:
    cell = rows[index]["image"]
    if len(cell) <= LONGEST_INDEX and cell in rows:
        cell = rows[cell]["image"]
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the image in {where} is not base64 ({error}); fetch the file again") from error


def _question(category: str, image: ImageSource, number: int, question: str, label: str, where: str) -> Question:
    if label not in ("Yes", "No"):
        raise ValueError(f"{where} has the answer {label!r}; MME has only Yes and No")
    return Question(
        benchmark="mme",
        split=category,
        sample_id=f"{category}/{image.name}/{number}",
        image=image,
        question=question,
        answer=label.lower(),
    )
