import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from datamodules.shards.folders import FolderError, holds, locked, new_folder, write_origin


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "data") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "a" / "data").exists()
    assert (tmp_path / "a" / "data" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["data"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "data") as partial:
            (partial / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("x")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "data"):
        pass
    assert (tmp_path / "data" / "mine").exists()


def test_a_folder_holds_what_its_record_says(tmp_path: Path) -> None:
    assert not holds(tmp_path / "data", "r.json", {"n": 1})
    (tmp_path / "data").mkdir()
    assert not holds(tmp_path / "data", "r.json", {"n": 1})
    write_origin(tmp_path / "data" / "r.json", {"n": 1, "m": "x"})
    assert holds(tmp_path / "data", "r.json", {"m": "x", "n": 1})
    with pytest.raises(FolderError, match=r"k is None there and 3 here, n is 1 there and 2 here\. Choose another"):
        holds(tmp_path / "data", "r.json", {"n": 2, "m": "x", "k": 3})


@pytest.mark.parametrize("content", [b"", b'{"n": 1', b"[1]", b"\0\0\0", b"\xff\xfe"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prepared.json").write_bytes(content)
    with pytest.raises(FolderError, match=rf"prepared\.json (cannot be read|holds no object).*delete {tmp_path} to"):
        holds(tmp_path, "prepared.json", {"n": 1})


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    with pytest.raises(FolderError, match=r"holds no r\.json"):
        holds(tmp_path / "data", "r.json", {})


def _append(folder: Path, log: Path) -> None:
    with locked(folder):
        before = log.read_text()
        for _ in range(50):
            os.sched_yield()
        log.write_text(before + "x")


def test_the_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    workers = [get_context("fork").Process(target=_append, args=(tmp_path / "data", log)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text() == "x" * 8


def test_what_a_killed_holder_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".data.partial-99999").mkdir()
    (tmp_path / ".other.partial-99999").mkdir()
    with locked(tmp_path / "data"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".data.lock", ".other.partial-99999"]
