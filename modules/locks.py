"""Locks between processes, of one node or of several that share a file system."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock file ``path``, which is made if need be and stays: to delete it would let two hold it.

    Yields its file descriptor. A process that inherits it holds the lock too, until both have ended.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
        OSError: it cannot be made, or is a link.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield lock
    finally:
        os.close(lock)


def lock_of(path: Path) -> Path:
    """The lock file of a file or folder: hidden, beside it."""
    return path.with_name(f".{path.name}.lock")
