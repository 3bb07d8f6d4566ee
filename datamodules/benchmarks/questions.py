"""What all question benchmarks share: the form of a question, and checked reading of their files."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.images import ImageSource

OFFICIAL_ELSE = "If this is not the official file, set its data to 'scenes'"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question on one picture, as the benchmark's file has it."""

    benchmark: str
    split: str
    sample_id: str
    """``<split>/<question id>``: unique in the benchmark and the same in every process."""
    image: ImageSource
    question: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What scoring needs beyond the answer."""


def read_json(path: Path) -> Any:
    """The JSON document in ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a file with one JSON value per line, each with the name of its line for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not valid JSON.
    """
    for where, line in read_lines(path):
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not valid JSON ({error}); the file must hold one object per line") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The non-empty lines of a file, each with its name for errors; raises like `read_text`."""
    # only at "\n": splitlines would also split at characters that occur in questions, such as U+2028
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"line {number} of {path}", line


def read_text(path: Path) -> str:
    """The text in ``path``, without its byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8.
    """
    require_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); fetch it again") from error


def require_file(path: Path) -> None:
    """Raise FileNotFoundError unless ``path`` is a file."""
    if not path.is_file():
        raise FileNotFoundError(f"benchmark file {path} does not exist; check the path in the configuration")


def require_unique(questions: Sequence[Question], source: Path) -> None:
    """Raise ValueError if ``source`` gave one sample id to several questions."""
    ids = {question.sample_id for question in questions}
    if len(ids) != len(questions):
        [(repeated, times)] = Counter(question.sample_id for question in questions).most_common(1)
        raise ValueError(f"{source} holds question {repeated} {times} times; ids must be unique")


def require_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raise ValueError unless ``entry`` is an object with ``keys``; ``where`` names it."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a JSON object, found {type(entry).__name__}")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise ValueError(f"{where} is missing {', '.join(missing)}; expected the keys {', '.join(keys)}")


def require_images(images: Iterable[ImageSource], source: Path) -> None:
    """Raise FileNotFoundError unless all picture files that ``source`` names exist."""
    wanted = list(dict.fromkeys(image for image in images if isinstance(image, Path)))
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} images that {source} names do not exist, the first is {missing[0]}; "
            "check the images folder"
        )
