"""Values from files that others made: what is refused, and how it is said."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pytest
from annotated_types import Ge, MinLen
from pydantic import FiniteFloat
from typing_extensions import TypedDict

from modules.reading import (
    checked,
    parse_json,
    read_entries,
    read_json,
    read_json_lines,
    read_text,
    require_file,
    shown,
)


class Line(TypedDict):
    number: Annotated[int, Ge(0)]
    text: Annotated[str, MinLen(1)]
    label: Literal["yes", "no"]
    answers: NotRequired[list[str]]


GOOD: dict[str, Any] = {"number": 1, "text": "a", "label": "yes", "beyond": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "1"}, "number is '1', expected a whole number"),
        ({"number": True}, "number is true, expected a whole number"),
        ({"number": 1.0}, "number is 1.0, expected a whole number"),
        ({"number": -1}, "number is -1, expected at least 0"),
        ({"text": None}, "text is null, expected a text"),
        ({"text": ""}, "text is '', expected a text that is not empty"),
        ({"text": "a\ud800"}, r"text is 'a\ud800', expected valid Unicode"),
        ({"text": b"abc"}, "text is 3 bytes, expected a text"),
        ({"text": ["x" * 200]}, f"text is ['{'x' * 58}..., expected a text"),
        ({"label": "maybe"}, "label is 'maybe', expected 'yes' or 'no'"),
        ({"answers": "x"}, "answers is 'x', expected a list"),
        ({"answers": ["x", 2]}, "answers[1] is 2, expected a text"),
        ({"answers": ["x", "\udc00"]}, r"answers[1] is '\udc00', expected valid Unicode"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        checked({**GOOD, **change}, Line, "line 3 of x.json")
    assert str(error.value) == f"line 3 of x.json: {message}"


def test_what_is_missing_is_named_and_what_is_good_comes_back_as_it_was() -> None:
    assert checked(GOOD, Line, "x") is GOOD
    with pytest.raises(ValueError, match=r"^x: text is missing$"):
        checked({"number": 1, "label": "no"}, Line, "x")
    with pytest.raises(ValueError, match=r"^x: is \[1\], expected an object$"):
        checked([1], Line, "x")
    for value, kind in (("\ud800", str), ({"\ud800": 1}, dict[str, int])):
        with pytest.raises(ValueError, match=r"is '.ud800', expected valid Unicode$"):
            checked(value, kind, "x")
    with pytest.raises(ValueError, match=r"^x: is inf, expected a finite number$"):
        checked(json.loads("1e999"), FiniteFloat, "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "x is not valid JSON (the key 'a' is there twice)"),
        ('{"a": [NaN]}', "x is not valid JSON (NaN is no JSON number)"),
        ("{", "x is not valid JSON (Expecting property name"),
        ("9" * 5000, "x is not valid JSON (Exceeds the limit"),
        ("[" * 100_000, "x is nested too deeply to be read"),
        (b"\xff\xfe\x00", "x is not valid JSON ("),
    ],
)
def test_json_that_json_does_not_know_is_refused(content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the beginning of the message is compared
        parse_json(content, "x")
    assert str(error.value).startswith(message)


def test_files_are_read_with_a_mark_and_without_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa4"}')
    assert read_json(path, dict, "list") == {"a": "ä"}
    path.write_bytes(b'{"a": 1}\n\n{"a": "\xe2\x80\xa8"}\r\n')
    assert list(read_json_lines(path, dict, "list")) == [
        (f"line 1 of list {path}", {"a": 1}),
        (f"line 3 of list {path}", {"a": "\u2028"}),
    ]
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=rf"^list {path} is not UTF-8 \(.*\); fetch it again$"):
        read_text(path, "list")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=rf"^list {path} is a git-lfs pointer.*git lfs pull"):
        read_text(path, "list")
    with pytest.raises(ValueError, match=rf"^table {path} is a git-lfs pointer"):
        require_file(path, "table")
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist$"):
        read_text(tmp_path / "none.json", "list")
    with pytest.raises(FileNotFoundError, match=r"is not a file$"):
        read_text(tmp_path, "list")


def test_values_are_shown_short_on_one_line() -> None:
    assert [shown(value) for value in (None, False, "a\nb", {"a": 1})] == ["null", "false", r"'a\nb'", "{'a': 1}"]
    assert len(shown(list(range(1000)))) == 63


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a": 2}]', ' \n[{"a": 1},\n{"a": 2}]\n', '{"a": 1}\n\n{"a": 2}\n'])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_entries_are_a_list_or_lines_whatever_the_file_is_called(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text("\ufeff" + content, encoding="utf-8")
    assert read_entries(tmp_path / name, dict[str, int], "entries") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": "2"}', r"^line 2 of entries .*x: a is '2', expected a whole number$"),
        ('[{"a": 1}, []]', r"^entries .*x: \[1\] is \[\], expected an object$"),
        ('{\n"a": 1}', r"^line 1 of .*x, which does not begin with \[ and so must hold one JSON value per line, is"),
        ("[1", r"^entries .*x is not valid JSON"),
    ],
)
def test_entries_of_another_layout_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_entries(tmp_path / "x", dict[str, int], "entries")
