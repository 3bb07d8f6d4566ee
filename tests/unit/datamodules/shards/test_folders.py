from pathlib import Path

import pytest

from datamodules.shards.folders import FolderError, holds, locked_folder, write_origin


def test_a_folder_holds_what_its_origin_says(tmp_path: Path) -> None:
    assert not holds(tmp_path / "data", "r.json", {"n": 1})
    (tmp_path / "data").mkdir()
    assert not holds(tmp_path / "data", "r.json", {"n": 1})
    write_origin(tmp_path / "data" / "r.json", {"n": 1, "m": "x"})
    assert holds(tmp_path / "data", "r.json", {"m": "x", "n": 1})
    with pytest.raises(FolderError, match=r"k is None there and 3 here, n is 1 there and 2 here\. Choose another"):
        holds(tmp_path / "data", "r.json", {"n": 2, "m": "x", "k": 3})


@pytest.mark.parametrize("content", [b"", b'{"n": 1', b"[1]", b"null", b"[" * 100_000, b"\0\0\0", b"\xff\xfe"])
def test_a_damaged_origin_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prepared.json").write_bytes(content)
    with pytest.raises(FolderError, match=rf"prepared\.json cannot be read \(.*\); delete {tmp_path} to"):
        holds(tmp_path, "prepared.json", {"n": 1})


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    with pytest.raises(FolderError, match=r"holds no r\.json"):
        holds(tmp_path / "data", "r.json", {})


def test_what_a_killed_holder_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".data.partial-99999").mkdir()
    (tmp_path / ".other.partial-99999").mkdir()
    with locked_folder(tmp_path / "data"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".data.lock", ".other.partial-99999"]
