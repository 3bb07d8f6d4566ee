"""Output that neither ends nor fails a verb: a closed pipe, a log file on a full disk, a terminal without Unicode."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.table import Table


def show_replacements() -> None:
    """From now on, standard output shows ? for what its encoding cannot show, for example under LC_ALL=C."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def show_table(table: "Table") -> None:
    """Print a table in full width. rich would cut its cells on a narrower console, or in a pipe (80 columns)."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    width = Measurement.get(console, console.options.update(width=10_000), table).maximum
    Console(width=max(width, console.width)).print(table)


class _Outlived:
    """A text stream that is redirected to /dev/null once it can no longer be written."""

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
        """Flush the buffer, or lose it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Redirect the file descriptor to /dev/null, because the stream tries to write its buffer again at exit."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"WARNING: {self._name} can no longer be written ({error}); the work goes on without it\n")
            sys.stderr.flush()


@contextmanager
def outlived_output() -> Iterator[None]:
    """In this block, errors of standard output and standard error lose only text."""
    before = sys.stdout, sys.stderr
    # in a process started without one of them it is None, which print accepts
    sys.stdout = sys.stdout and _Outlived(sys.stdout, "standard output")
    sys.stderr = sys.stderr and _Outlived(sys.stderr, "standard error")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
