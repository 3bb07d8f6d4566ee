"""How a run and its processes end: exit codes, what becomes of the other ranks, and the last function at exit.

Imports nothing heavy: every verb loads it before anything else.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

DONE, FAILED, UNUSABLE, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes: all is well; a fault of the program; what the user can mend; a training that was told to stop, saved its
step and will go on from there (EX_TEMPFAIL of sysexits.h); stopped by Ctrl-C, as shells count it."""

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    ChildProcessError,
)
"""What a user can mend: shown as a message. Anything else is a fault of the program and keeps its traceback."""

GRACE_SECONDS = 10.0
"""How long ranks that rank 0 has started may still speak after it has failed, before they are killed."""

exit_code: int | None = None
"""Set where the process is to end by `leave`."""


class OtherRanks(Protocol):
    """The ranks that this process has started, if it has."""

    def end(self, grace: float) -> list[int]:
        """Their exit codes; those that are still there after ``grace`` seconds are killed."""


@dataclass
class Outcome:
    """What came of a training: its exit code, which is that of a failure until it says otherwise."""

    code: int = FAILED


@contextmanager
def ended_in_order(others: OtherRanks, close: Callable[[int], None]) -> Iterator[Outcome]:
    """Around a training: however it ends, the other ranks end too, and ``close`` is called with its exit code.

    Raises:
        SystemExit: `INTERRUPTED`, where Lightning was stopped by Ctrl-C; its own exit code would tell a batch script
            that all is well. `UNUSABLE`, where a rank has told what the user can mend: that it has ended is no fault.
    """
    outcome = Outcome()
    try:
        yield outcome
    except SystemExit as stop:
        outcome.code = INTERRUPTED
        others.end(GRACE_SECONDS)
        raise SystemExit(INTERRUPTED) from stop
    except Exception as error:
        if UNUSABLE in others.end(GRACE_SECONDS) and not isinstance(error, USER_ERRORS):
            raise SystemExit(UNUSABLE) from error
        raise
    finally:
        close(outcome.code)


def leave() -> None:
    """End the process by ``exit_code``, as the last function that is called at its exit.

    gloo's threads drop their references to tensors when it suits them. One that does so while the interpreter is
    dismantled aborts the process (-6), though its run is complete (docs/decisions/0016-how-a-rank-leaves.md).

    Raises:
        OSError: what was printed has no room; Python says so and ends the process by another code.
    """
    if exit_code is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(exit_code)
