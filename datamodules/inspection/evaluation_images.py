"""The pictures of a benchmark, to find them in training data.

A picture is known by its file name without folder and extension. COCO's are known by their twelve-digit number, so
``COCO_val2014_000000310196.jpg``, ``000000310196.jpg`` and the id 310196 are the same.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_COCO = re.compile(r"COCO_[a-z]+\d{4}_(\d{12})")
_KEYS = ("file_name", "image", "imageId", "image_id")
"""Keys of a picture's name or number in the known benchmarks."""


@dataclass(frozen=True, kw_only=True)
class EvaluationImages:
    """Digests of the pictures' names and, if the pictures themselves were given, of their contents."""

    names: NDArray[np.uint64]
    contents: NDArray[np.uint64]


def read_evaluation(places: list[Path]) -> EvaluationImages:
    """The pictures in folders and in the question files of POPE, GQA, VQAv2 and COCO.

    Raises:
        FileNotFoundError: a place does not exist.
        ValueError: a place names no pictures.
    """
    names: set[int] = set()
    contents: set[int] = set()
    for place in places:
        found = set(_folder(place, contents) if place.is_dir() else map(picture_name, _named_in(place)))
        if not found:
            raise ValueError(
                f"{place} names no picture; give a folder of pictures, or a JSON file or JSON lines with entries that "
                f"hold {', '.join(_KEYS)}"
            )
        names.update(digest(name.encode()) for name in found)
    return EvaluationImages(names=_array(names), contents=_array(contents))


def picture_name(value: str | int) -> str:
    """The name of a picture: its file name without extension, or COCO's number."""
    if isinstance(value, int):
        return f"{value:012d}"
    stem = PurePosixPath(value).stem
    match = _COCO.fullmatch(stem)
    return match.group(1) if match else stem


def digest(content: bytes) -> int:
    """A 64-bit hash of ``content``; among ten million pictures, a collision has a chance of 1 in 370,000."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def _array(values: set[int]) -> NDArray[np.uint64]:
    return np.array(sorted(values), dtype=np.uint64)


def _folder(folder: Path, contents: set[int]) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS:
            contents.add(digest(path.read_bytes()))
            yield picture_name(path.name)


def _named_in(path: Path) -> Iterator[str | int]:
    for entry in _entries(path):
        if isinstance(entry, dict):
            value = next((entry[key] for key in _KEYS if key in entry), None)
            if isinstance(value, (str, int)):
                yield value


def _entries(path: Path) -> list[Any]:
    """The entries of a file: a list, an object's values, COCO's ``images``, VQA's ``questions``, or JSON lines."""
    if not path.is_file():
        raise FileNotFoundError(f"evaluation file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"evaluation file {path} is neither JSON nor JSON lines ({error})") from error
    if isinstance(content, dict):
        for key in ("images", "questions"):
            if isinstance(content.get(key), list):
                return list(content[key])
        return [content, *content.values()]
    return content if isinstance(content, list) else []
