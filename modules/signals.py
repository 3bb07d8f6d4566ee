"""Signals that tell a run to stop. The handler only sets a flag; code that can stop cleanly checks it.

Saving inside a handler would interrupt whatever the process was doing, for example a collective, and hang. This module
imports nothing heavy, so a process can listen before it loads anything.
"""

import signal
from types import FrameType

STOP = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""What batch systems send before they end a job."""

_received: str | None = None


def listen() -> None:
    """From now on, the signals of `STOP` set the flag. Without a handler they would kill a process that is loading.

    If the process was started with them blocked (slurm/lib.sh), a signal that came earlier sets the flag now.
    """
    for number in STOP:
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)


def received() -> str | None:
    """Name of the first signal received, or None."""
    return _received


def ignore() -> None:
    """Ignore the signals in a worker process; its parent handles them. Some clusters signal every process of a job."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, _frame: FrameType | None) -> None:
    global _received
    _received = _received or signal.Signals(number).name
