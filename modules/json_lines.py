"""Files with one JSON object per line, appended by processes that may be killed while they write."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from modules.reading import checked, json_value

Keys = Mapping[str, Any]
"""What every row must have: key to type, as `modules.reading` checks it."""


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append ``rows`` and flush them to the system."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(
    path: Path,
    keys: Keys | None = None,
    *,
    fix: str = "delete that line",
    damaged: Callable[[int, str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of a file; none if there is no file. Text after the last newline is a row cut short, and is ignored.

    With ``damaged``, a bad line is skipped, and ``damaged`` is called with its number and the reason.

    Raises:
        ValueError: a line is bad: not a JSON object, or a key is missing or has the wrong type. The message ends with
            ``fix``.
    """
    if not path.is_file():
        return
    kind = _kind(tuple((keys or {}).items()))
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row: dict[str, Any] = checked(json_value(line), kind, "row")
        except ValueError as error:
            if damaged is None:
                raise ValueError(f"line {number} of {path} is damaged ({error}); {fix}") from error
            damaged(number, str(error))
        else:
            yield row


@cache
def _kind(keys: tuple[tuple[str, Any], ...]) -> Any:
    return TypedDict("Row", dict(keys)) if keys else dict[str, Any]  # type: ignore[operator]


def drop_torn_line(path: Path) -> None:
    """Cut off an incomplete last line, left by a process that was killed."""
    if path.is_file():
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.truncate(path, complete)
