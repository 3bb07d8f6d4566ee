"""Locks between processes, on one node or on several that share a file system."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock file ``path``. It is created if needed and never deleted, or two processes could hold the lock.

    Yields its file descriptor. A process that inherits it also holds the lock, until both processes have ended.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is False.
        OSError: the file cannot be created, or is a link.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield lock
    finally:
        os.close(lock)


def lock_of(path: Path) -> Path:
    """The lock file of a file or folder: a hidden file next to it."""
    return path.with_name(f".{path.name}.lock")
