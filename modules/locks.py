"""Locks between processes, on one node or on several that share a file system."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modules import signals

_POLL_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Between two tries; the last one repeats. The system's own wait would not hear a signal."""


@contextmanager
def locked(path: Path, *, wait: bool | float = True, patience: float = 0.0) -> Iterator[int]:
    """Hold the lock file ``path``. It is created if needed and never deleted, or two processes could hold the lock.

    Yields its file descriptor. A process that inherits it also holds the lock, until both have closed it.
    ``wait`` may be a number of seconds. A signal to stop ends a process that waits ``patience``
    seconds longer (`modules.signals.waiting`).

    Raises:
        BlockingIOError: another process still holds the lock after ``wait``.
        OSError: the file cannot be created.
        ValueError: it is a link.
    """
    lock = _opened(path)
    try:
        _take(lock, path, float("inf") if wait is True else float(wait), patience)
        yield lock
    finally:
        os.close(lock)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise ValueError(f"lock {path} is a link; remove it: a lock is never taken through one") from error
        raise


def _take(lock: int, path: Path, seconds: float, patience: float) -> None:
    deadline = time.monotonic() + seconds
    if _tried(lock):
        return
    with signals.waiting(f"another process that holds {path}", patience=patience):
        tries = 0
        while not _tried(lock):
            if time.monotonic() > deadline:
                raise BlockingIOError(f"another process holds {path}")
            time.sleep(_POLL_SECONDS[min(tries, len(_POLL_SECONDS) - 1)])
            tries += 1


def _tried(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_of(path: Path) -> Path:
    """The lock file of a file or folder: a hidden file next to it."""
    return path.with_name(f".{path.name}.lock")
