import fcntl
import os
import subprocess
from multiprocessing import get_context
from pathlib import Path

import pytest

from modules.locks import lock_of, locked


def _append(lock: Path, log: Path) -> None:
    with locked(lock):
        before = log.read_text()
        for _ in range(50):
            os.sched_yield()
        log.write_text(before + "x")


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    workers = [get_context("fork").Process(target=_append, args=(tmp_path / "lock", log)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text() == "x" * 8


def test_who_does_not_wait_is_told_and_the_file_stays(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / "data")
    assert lock.name == ".data.lock"
    with locked(lock, wait=False), pytest.raises(BlockingIOError), locked(lock, wait=False):
        pass
    assert lock.is_file()
    with locked(lock, wait=False):
        pass


def test_a_process_that_inherits_the_lock_holds_it_too(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as handle:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[handle])
    try:
        with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
            pass
    finally:
        child.kill()
        child.wait()
    with locked(tmp_path / "lock", wait=False):
        pass


def test_another_file_is_neither_emptied_nor_followed_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with locked(tmp_path / "mine"):
        pass
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="lock is a link; remove it"), locked(tmp_path / "lock"):
        pass
    assert (tmp_path / "mine").read_text() == "x"


def test_the_file_is_open_to_write_as_a_lock_over_nfs_must_be(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as handle:
        assert fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
