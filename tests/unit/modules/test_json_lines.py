from pathlib import Path

import pytest

from modules.json_lines import append_rows, drop_torn_line, read_rows


def test_rows_read_back_in_order_and_a_torn_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert list(read_rows(path)) == []
    append_rows(path, [{"a": 1}, {"a": "ä\u2028"}])
    append_rows(path, [{"a": None}])
    with path.open("ab") as file:
        file.write(b'{"a": 4')
    assert list(read_rows(path)) == [{"a": 1}, {"a": "ä\u2028"}, {"a": None}]
    drop_torn_line(path)
    append_rows(path, [{"a": 5}])
    assert [row["a"] for row in read_rows(path)] == [1, "ä\u2028", None, 5]
    drop_torn_line(tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"a": 2, "b', "Expecting|Unterminated"),
        (b"\0\0\0", "Expecting"),
        (b"\xff\xfe", "Expecting"),
        (b"[1]", r"row: is \[1\], expected an object"),
        (b'{"b": 1}', "row: a is missing"),
        (b'{"a": true}', "row: a is true, expected a whole number"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1} {"a": 2}', "holds several JSON values"),
    ],
)
def test_a_damaged_line_is_named_with_the_way_out(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(ValueError, match=rf"(?s)line 2 of .*rows\.jsonl is damaged.*({why}).*; delete that line$"):
        list(read_rows(path, {"a": int}))
    with pytest.raises(ValueError, match=r"; rebuild it$"):
        list(read_rows(path, {"a": int}, fix="rebuild it"))
    bad: list[int] = []
    rows = read_rows(path, {"a": int}, damaged=lambda number, reason: bad.append(number))
    assert [row["a"] for row in rows] == [1, 3]
    assert bad == [2]
