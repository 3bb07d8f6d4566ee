"""Folders with links, circles and what macOS leaves in archives."""

import os
from collections import Counter
from pathlib import Path

import pytest

from modules.folders import files_below


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def listed(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


def test_links_are_followed_each_real_folder_once_and_circles_end(tmp_path: Path) -> None:
    other = fill(tmp_path / "other", "c.jpg", "deep/d.jpg")
    folder = fill(tmp_path / "folder", "b.jpg", "part/a.jpg")
    (folder / "1_link_to_part").symlink_to(folder / "part")  # sorts before the real folder, which keeps its name
    (folder / "linked").symlink_to(other)
    (folder / "linked_again").symlink_to(other)
    (other / "deep" / "back").symlink_to(folder)
    (folder / "file_link.jpg").symlink_to(other / "c.jpg")
    assert listed(folder) == ["b.jpg", "file_link.jpg", "linked/c.jpg", "linked/deep/d.jpg", "part/a.jpg"]
    (tmp_path / "all").symlink_to(other)  # the folder itself may be a link
    back = ["deep/back/b.jpg", "deep/back/file_link.jpg", "deep/back/part/a.jpg"]
    assert listed(tmp_path / "all") == ["c.jpg", *back, "deep/d.jpg"]


def test_a_link_to_nothing_is_listed_so_that_its_reader_fails(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert listed(tmp_path) == ["gone.jpg"]


def test_files_of_macos_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fill(tmp_path / "__MACOSX", "a.jpg", "._a.jpg", "__MACOSX/part/._b.jpg", "__MACOSX/odd.jpg", "part/b.jpg")
    assert listed(folder) == ["a.jpg", "part/b.jpg"]  # the name of the folder itself does not count
    left_out: Counter[str] = Counter()
    assert len(files_below(folder, left_out)) == 2
    assert left_out == {"macos_files_left_out": 3}
    assert f"{folder}: 3 files that macOS added (._*, __MACOSX) are left out" in caplog.text
    assert len(caplog.messages) == 1  # however often it is listed
    caplog.clear()
    assert listed(folder / "part") == ["b.jpg"]
    assert not caplog.text


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.jpg", "closed/b.jpg")
    scan = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        files_below(tmp_path)
