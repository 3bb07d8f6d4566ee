"""A checkpoint is written whole or not at all, on disks that are full or fail too."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.checkpoint_writing import snapshot, stored_bytes, write_checkpoint
from modules.checkpoints import STATE, CheckpointError, latest_valid, problem, read_state
from modules.files import step_name
from tests.disks import mounted

STATE_4 = {"state_dict": {"a": torch.arange(200_000.0)}, "global_step": 4}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    final = tmp_path / "checkpoints" / step_name(4)
    write_checkpoint(STATE_4, final, 4)
    assert problem(final) is None
    assert names(final.parent) == [step_name(4)]
    read = read_state(final)
    assert torch.equal(read["state_dict"]["a"], STATE_4["state_dict"]["a"])  # type: ignore[index]


def test_what_a_kill_left_behind_is_removed_before_room_is_measured(tmp_path: Path) -> None:
    (tmp_path / ".step-000000002.tmp").mkdir()
    (tmp_path / ".step-000000002.tmp" / STATE).write_text("half")
    write_checkpoint(STATE_4, tmp_path / step_name(4), 4)
    assert names(tmp_path) == [step_name(4)]


def test_too_little_room_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(STATE_4, tmp_path / step_name(4), 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**31, 2**31 - 1000, 1000))
    monkeypatch.setattr(torch, "save", lambda *_: pytest.fail("written all the same"))
    with pytest.raises(CheckpointError) as error:
        write_checkpoint(STATE_4, tmp_path / step_name(8), 8)
    assert str(error.value) == (
        f"checkpoint {tmp_path / step_name(8)} was not written: it needs 0.00172 GiB and its disk has 9.31e-07 left. "
        "Make room there, or keep fewer (checkpoint.keep_last). Earlier checkpoints are unchanged"
    )
    assert names(tmp_path) == [step_name(4)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB: room for two states of 0.8 MB."""
    with mounted(tmp_path / "disk", 2**21) as place:
        yield place


def test_a_disk_that_fills_up_meanwhile_keeps_the_older_checkpoint(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 0, 2**40))
    for step in (4, 8):
        write_checkpoint(STATE_4, small_disk / step_name(step), step)
    with pytest.raises(CheckpointError) as error:
        write_checkpoint(STATE_4, small_disk / step_name(12), 12)
    assert str(error.value) == (
        f"checkpoint {small_disk / step_name(12)} could not be written: No space left on device. "
        "Earlier checkpoints are unchanged"
    )
    assert names(small_disk) == [step_name(4), step_name(8)]
    assert latest_valid(small_disk, pytest.fail) == small_disk / step_name(8)


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from modules.checkpoint_writing import write_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
write_checkpoint({"a": torch.zeros(10)}, folder / "step-000000004", 4)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
write_checkpoint({"a": torch.arange(200_000.0)}, folder / "step-000000008", 8)
"""


def test_a_file_that_may_not_grow_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert f"CheckpointError: checkpoint {tmp_path / step_name(8)} could not be written: File too large." in done.stderr
    assert names(tmp_path) == [step_name(4)]
    assert problem(tmp_path / step_name(4)) is None


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EROFS])
def test_whatever_the_system_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=f"could not be written: {os.strerror(number)}"):
        write_checkpoint(STATE_4, tmp_path / step_name(4), 4)
    assert names(tmp_path) == []


def test_a_fault_of_the_program_is_not_called_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        write_checkpoint(STATE_4, tmp_path / step_name(4), 4)
    assert names(tmp_path) == []


def test_a_snapshot_does_not_change_any_more_and_shares_what_the_state_shares() -> None:
    weight = torch.arange(6.0)
    state: dict[str, Any] = {"a": weight, "tied": weight[2:], "steps": [{"step": 1}], "more": (torch.ones(2),)}
    copied = snapshot(state)
    assert stored_bytes(copied) == stored_bytes(state) == 4 * (6 + 2)
    weight += 1
    state["steps"][0]["step"] = 2
    assert copied["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert copied["steps"] == [{"step": 1}]
    copied["a"][5] = 9
    assert copied["tied"].tolist() == [2, 3, 4, 9]
