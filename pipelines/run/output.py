"""Output that a training outlives: a pipe that is closed, or a log file on a full disk."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _Outlived:
    """A text stream that is led to nowhere once it can no longer be written."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``, or lose it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Write out what is buffered, or lose it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Lead the descriptor to nowhere: the stream still holds what it could not write, and tries it at exit."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"WARNING: {self._name} can no longer be written ({error}); training goes on without it\n")
            sys.stderr.flush()


@contextmanager
def outlived_output() -> Iterator[None]:
    """Meanwhile, an error of standard output or standard error loses text, and nothing else."""
    before = sys.stdout, sys.stderr
    # a process started without one of them has None there, which print accepts
    sys.stdout = sys.stdout and _Outlived(sys.stdout, "standard output")
    sys.stderr = sys.stderr and _Outlived(sys.stderr, "standard error")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
