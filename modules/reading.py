"""Reads files that others made: every value is checked for type and range where it is read.

pydantic checks in strict mode, so nothing is converted. Errors name the file, the place in it, the key, what was found
and what was expected.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
_MOST_SHOWN = 60
"""Characters of a value that a message shows."""
_LFS = b"version https://git-lfs"
_EXPECTED = {
    "string_type": "a text",
    "string_unicode": "valid Unicode",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a text like {pattern}",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bytes_type": "bytes",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} of them, not {actual_length}",
    "too_long": "at most {max_length} of them, not {actual_length}",
}
"""pydantic's kinds of error, in our words."""


def checked(value: Any, kind: type[T], where: str) -> T:
    """``value``, if it is of the type ``kind``: a type, a TypedDict, or these with bounds (``Annotated``).

    Raises:
        ValueError: it is not; the message begins with ``where``.
    """
    try:
        _adapter(cast(Any, kind)).validate_python((value,), strict=True)
    except ValidationError as error:
        raise ValueError(f"{where}: {_problem(error)}") from None
    return cast(T, value)


def parse_json(content: str | bytes, where: str) -> Any:
    """The JSON value in ``content``.

    Raises:
        ValueError: it is not JSON, is nested too deeply, repeats a key, or holds NaN or Infinity.
    """
    try:
        return json_value(content)
    except ValueError as error:
        raise ValueError(f"{where} {error}; fetch it again, or fix it") from None


def json_value(content: str | bytes) -> Any:
    """Like `parse_json`; the message of an error is the reason alone."""
    try:
        return json.loads(content, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("is nested too deeply to be read, where a few levels are usual") from None
    except ValueError as error:
        several = "holds several JSON values, but must hold one" if str(error).startswith("Extra data") else ""
        raise ValueError(f"{several or 'is not valid JSON'} ({error})") from None


def read_text(path: Path, what: str) -> str:
    """The text of a file, without a byte order mark; ``what`` names the file in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, or a pointer that git-lfs left in its place.
    """
    require_file(path, what)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} {path} is not UTF-8 ({error}); fetch it again") from None


def require_file(path: Path, what: str) -> None:
    """Raise unless ``path`` is a file and not a pointer of git-lfs; ``what`` names it in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a pointer that git-lfs left in its place.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path} {'is not a file' if path.exists() else 'does not exist'}")
    with path.open("rb") as file:
        refuse_lfs_pointer(file.read(len(_LFS)), f"{what} {path}")


def refuse_lfs_pointer(content: bytes, where: str) -> None:
    """Raise ValueError if ``content``, the beginning of a file, is a pointer that git-lfs left in the file's place."""
    if content.startswith(_LFS):
        raise ValueError(f"{where} is a git-lfs pointer, not the file itself; run `git lfs pull` where it came from")


def read_json(path: Path, kind: type[T], what: str) -> T:
    """The value of a JSON file, checked; raises like `read_text`, `parse_json` and `checked`."""
    return checked(parse_json(read_text(path, what), f"{what} {path}"), kind, f"{what} {path}")


def read_json_lines(path: Path, kind: type[T], what: str) -> Iterator[tuple[str, T]]:
    """The values of a file with one JSON value per line, checked, each with the name of its line for errors.

    Empty lines are skipped. Raises like `read_json`.
    """
    for where, line in read_lines(path, what):
        yield where, checked(parse_json(line, where), kind, where)


def read_entries(path: Path, kind: type[T], what: str) -> list[T]:
    """The values of a file that holds a JSON list, or one JSON value per line, checked; its name does not matter.

    Raises like `read_json`.
    """
    text, where = read_text(path, what), f"{what} {path}"
    if re.match(r"\s*\[", text):
        return checked(parse_json(text, where), cast(Any, list)[kind], where)
    by_line = "which does not begin with [ and so must hold one JSON value per line"
    return [checked(parse_json(line, f"{name}, {by_line},"), kind, name) for name, line in _lines(text, where)]


def read_lines(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """The non-empty lines of a file, each with its name for errors; raises like `read_text`."""
    return _lines(read_text(path, what), f"{what} {path}")


def _lines(text: str, where: str) -> Iterator[tuple[str, str]]:
    # only at "\n": splitlines would also split at characters that texts hold, such as U+2028
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number} of {where}", line


def shown(value: Any) -> str:
    """``value`` as a message shows it: short, on one line, with its type where that is not plain."""
    text = " ".join(repr(value).split()) if not isinstance(value, bytes) else f"{len(value)} bytes"
    text = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
    return {"None": "null", "True": "true", "False": "false"}.get(text, text)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # pydantic looks at a text's Unicode only if it has a bound; a TypedDict alone would not take the setting
    return TypeAdapter(tuple[kind], config=ConfigDict(str_min_length=0))


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = _place(first["loc"][1:])
    if first["type"] == "missing":
        return f"{place} is missing"
    expected = _EXPECTED.get(first["type"], first["msg"]).format(**first.get("ctx", {}))
    return f"{place + ' ' if place else ''}is {shown(first['input'])}, expected {expected}"


def _place(keys: tuple[int | str, ...]) -> str:
    """``("answers", 3, "answer")`` as ``answers[3].answer``."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.removeprefix(".")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(repeated)} is there twice")
    return found


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")
