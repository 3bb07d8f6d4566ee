"""How a run and its processes end: exit codes, the end of the other ranks, and the last function at exit.

Imports nothing heavy, because every verb loads it before anything else.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from modules.signals import INTERRUPTED, PREEMPTED

__all__ = ["DONE", "FAILED", "INTERRUPTED", "PREEMPTED", "UNUSABLE", "USER_ERRORS", "ended_in_order", "leave"]

DONE, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: all is well; a fault of the program; something the user can fix. The others are in `modules.signals`."""

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    ChildProcessError,
)
"""Errors that a user can fix, shown as a message. Anything else is a fault of the program and keeps its traceback."""

GRACE_SECONDS = 10.0
"""How long the ranks started by rank 0 may keep running after it failed, before they are killed."""

exit_code: int | None = None
"""The exit code for `leave`; None if the process ends normally."""


class OtherRanks(Protocol):
    """The ranks that this process started, if any."""

    def end(self, grace: float) -> list[int]:
        """Wait for them, kill those still running after ``grace`` seconds, and return their exit codes."""


@dataclass
class Outcome:
    """The outcome of a training: its exit code, which is a failure until set otherwise."""

    code: int = FAILED


@contextmanager
def ended_in_order(others: OtherRanks, close: Callable[[int], None]) -> Iterator[Outcome]:
    """Wrap a training: however it ends, the other ranks end too, and ``close`` is called with its exit code.

    Raises:
        SystemExit: `INTERRUPTED` if Ctrl-C stopped Lightning, whose own exit code would tell a batch script that all
            is well. `UNUSABLE`, `PREEMPTED` or `INTERRUPTED` if another rank ended with that code, and has said why:
            here only a lost connection is known.
    """
    outcome = Outcome()
    try:
        yield outcome
    except SystemExit as stop:
        outcome.code = INTERRUPTED
        others.end(GRACE_SECONDS)
        raise SystemExit(INTERRUPTED) from stop
    except Exception as error:
        codes = others.end(GRACE_SECONDS)
        said = [code for code in (UNUSABLE, PREEMPTED, INTERRUPTED) if code in codes]
        if said and not isinstance(error, USER_ERRORS):
            outcome.code = said[0]
            raise SystemExit(said[0]) from error
        raise
    finally:
        close(outcome.code)


def leave() -> None:
    """End the process with ``exit_code``, as the last function called at its exit.

    gloo's threads may drop their references to tensors at any time. If one does so while the interpreter shuts down,
    the process aborts (-6), even though its run is complete (docs/decisions/0016-how-a-rank-leaves.md).

    Raises:
        OSError: the disk has no room for the output; Python then reports it and ends with another code.
    """
    if exit_code is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(exit_code)
