"""Writes a checkpoint completely or not at all: directly into its folder, with a clear message if that fails.
Removes old ones.

Lightning's own code writes through /tmp, holds the whole state in memory a second time, and ignores some errors
silently.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modules.checkpoints import MANIFEST, STATE, CheckpointError, NotFiniteError, commit, problem
from modules.files import GIB, step_folders, step_name
from modules.finite import broken_tensor
from modules.tensors import named_tensors

BESIDE = 2**20
"""Upper bound of the bytes that a checkpoint holds in addition to its tensors."""


def write_checkpoint(state: Mapping[str, Any], final: Path, step: int) -> None:
    """Write ``state``, the state at ``step``, as the checkpoint folder ``final``.

    Raises:
        NotFiniteError: the state holds NaN, infinity or a negative mean of squares.
        CheckpointError: the disk is full or fails.
        In both cases nothing of this checkpoint is left, and all others are unchanged.
    """
    if (tensor := broken_tensor(state)) is not None:
        raise NotFiniteError(
            f"checkpoint {final} was not written: {tensor} holds NaN, infinity or a negative mean of squares, and "
            "training could not go on from it. Earlier checkpoints are unchanged. Start the same command again to go "
            "on from the last one, and lower optim.lr if it happens again"
        )
    temporary = final.parent / f".{final.name}.tmp"
    try:
        for stale in final.parent.glob(".step-*.tmp"):  # from saves that were cut short
            shutil.rmtree(stale)
        final.parent.mkdir(parents=True, exist_ok=True)
        _refuse_full_disk(state, final)
        temporary.mkdir()
        with (temporary / STATE).open("wb") as file, _without_crc32():
            torch.save(state, file)
        commit(temporary, final, step)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cause = _disk_error(error)
        if cause is None:
            raise
        raise CheckpointError(
            f"checkpoint {final} could not be written: {cause.strerror or cause}. Earlier checkpoints are unchanged"
        ) from error


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of ``state`` on the CPU. It can be written while training goes on, because training does not change
    it."""
    moved = {id(tensor): tensor.cpu() for _, tensor in named_tensors(state) if tensor.device.type != "cpu"}
    return copy.deepcopy(state, moved)


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Turn off torch's own checksum, which takes 0.65 s per GB: the manifest has a stronger one of the whole file."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def stored_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of the tensors in ``state``. Tensors that share memory are stored once."""
    memory = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for _, tensor in named_tensors(state)
    }
    return sum(memory.values())


def _refuse_full_disk(state: Mapping[str, Any], final: Path) -> None:
    needed, free = stored_bytes(state) + BESIDE, shutil.disk_usage(final.parent).free
    if needed > free:
        raise CheckpointError(
            f"checkpoint {final} was not written: it needs {needed / GIB:.3g} GiB and its disk has {free / GIB:.3g} "
            "left. Make room there, or keep fewer (checkpoint.keep_last). Earlier checkpoints are unchanged"
        )


def _disk_error(error: BaseException | None) -> OSError | None:
    """The system's own error. torch reports a failed write only as an unexpected file position."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def remove_old(
    checkpoints: Path, keep_last: int, newest: int, best: int | None = None, known: dict[str, bool] | None = None
) -> None:
    """Delete the checkpoints before the last ``keep_last`` undamaged ones up to step ``newest``, except ``best``.

    Damaged ones do not count as kept: no good one is deleted for their sake. Those of later steps than ``newest``, the
    one just written, stay: they were skipped when the run resumed. ``known`` says of folders' names whether they are
    undamaged; those not in it are read, and added. The manifest is deleted first, so a half-deleted checkpoint is never
    used.
    """
    known = {} if known is None else known
    kept = 0
    for folder in step_folders(checkpoints)[::-1]:
        if folder.name > step_name(newest):
            continue
        if kept < keep_last:
            if folder.name not in known:
                known[folder.name] = problem(folder) is None
            kept += known[folder.name]
        elif best is None or folder.name != step_name(best):
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
