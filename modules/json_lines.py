"""Files to which one JSON object a line is appended, by processes that may be killed while they write."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append ``rows`` and hand them to the system."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path, keys: Sequence[str] = (), *, mend: str = "delete that line") -> Iterator[dict[str, Any]]:
    """The rows of a file; none where there is no file. What follows the last newline was cut short and is no row.

    Raises:
        ValueError: a line is no object, or misses one of ``keys``; the message says what to do (``mend``).
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is damaged ({error}); {mend}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is damaged: it is no object; {mend}")
        if missing := [key for key in keys if key not in row]:
            raise ValueError(f"line {number} of {path} is damaged: it has no {missing[0]}; {mend}")
        yield row


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left without its end."""
    if path.is_file():
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.truncate(path, complete)
