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

from modules.folders import files_below
from modules.reading import checked, parse_json, read_json, read_lines

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_FILE = "evaluation file"
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
        ValueError: a place names no pictures, or an entry of a file names none.
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
        names.update(digest(name.encode(errors="surrogatepass")) for name in found)
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
    for path in files_below(folder):
        if path.suffix.lower() in ENDINGS:
            contents.add(digest(path.read_bytes()))
            yield picture_name(path.name)


def _named_in(path: Path) -> Iterator[str | int]:
    for where, entry in _entries(path):
        key = next((key for key in _KEYS if key in checked(entry, dict, where)), None)
        if key is None:
            raise ValueError(f"{where} names no picture; expected one of the keys {', '.join(_KEYS)}")
        value = entry[key]
        if isinstance(value, int):
            checked({key: value}, dict[str, int], where)
        else:
            checked({key: value}, dict[str, str], where)
        yield value


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of a file: JSON lines, a list, an object's values, COCO's ``images``, or VQA's ``questions``."""
    lines = list(read_lines(path, _FILE))
    if len(lines) > 1 and _is_json(lines[0][1]):
        yield from ((where, parse_json(line, where)) for where, line in lines)
        return
    content = read_json(path, object, _FILE)
    if isinstance(content, dict):
        lists = [content[key] for key in ("images", "questions") if isinstance(content.get(key), list)]
        content = next(iter(lists), [content] if content.keys() & set(_KEYS) else content)
    named = content.items() if isinstance(content, dict) else enumerate(checked(content, list, f"{_FILE} {path}"))
    yield from ((f"entry {key} of {_FILE} {path}", entry) for key, entry in named)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
