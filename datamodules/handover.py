"""Hands micro-batches from the worker processes to training, and ends waits that would never end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from datamodules.datasets import DataError
from modules import signals
from modules.tensors import named_tensors

PATIENCE_SECONDS = 60.0
"""How long to wait for a micro-batch after a signal to stop, so that its step can be saved. Then the process ends, and
the steps since the last checkpoint are trained again."""
TELL_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class _Failed:
    """A worker's error message, sent instead of a micro-batch."""

    why: str


def start_worker(_worker: int) -> None:
    """Set up a worker process."""
    signals.ignore()
    torch.set_num_threads(1)


def hand_over(batch: Any) -> Any:
    """Move ``batch`` to shared memory, if this is a worker.

    The worker's queue would do this in a thread, where an error is only printed and the main process waits forever.
    """
    if get_worker_info() is None:
        return batch
    try:
        for _, tensor in named_tensors(batch):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        return _Failed(
            f"a data worker cannot hand over a micro-batch: {error}. Make room in /dev/shm (in a container: "
            "--shm-size or --ipc=host), or allow more open files (ulimit -n), or set data.num_workers=0"
        )
    return batch


class BatchLoader(DataLoader[Any]):
    """A loader that says what it waits for, and whose waits a signal can end.

    Iterating raises `DataError` if a worker cannot hand over a micro-batch, or if none comes for ``timeout`` seconds.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return _Batches(super().__iter__(), self.timeout)


class _Batches:
    def __init__(self, batches: Iterator[Any], timeout: float) -> None:
        self._batches, self._timeout = batches, timeout

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        wait = {"patience": PATIENCE_SECONDS, "tell_after": TELL_AFTER_SECONDS}
        try:
            with signals.waiting("a micro-batch from the data workers", **wait):
                batch = next(self._batches)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            self._end_workers()
            raise DataError(
                f"the data workers made no micro-batch for {self._timeout / 60:g} minutes (guards.hang_minutes): see "
                "whether the data's file system answers, and start the same command again"
            ) from error
        if isinstance(batch, _Failed):
            self._end_workers()
            raise DataError(batch.why)
        return batch

    def _end_workers(self) -> None:
        """Kill the workers: they ignore the signal that Python sends at exit, so Python would wait for them."""
        workers = getattr(self._batches, "_workers", [])
        if workers:
            self._batches._shutdown_workers()  # type: ignore[attr-defined]
        for worker in workers:
            worker.kill()
