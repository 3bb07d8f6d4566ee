"""Signals that ask a run to stop: a handler raises a flag and does nothing else; who can stop in order looks at it.

Saving inside a handler would interleave with whatever the process was doing, a collective for one, and hang. Nothing
heavy is imported here, so that a process can listen before it loads anything.
"""

import signal
from types import FrameType

STOP = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""What batch systems send before they take a machine away."""

_received: str | None = None


def listen() -> None:
    """From now on the signals of `STOP` raise the flag; unhandled they would kill a process that still loads.

    One that came before, when this process was started with them blocked (slurm/lib.sh), raises it now.
    """
    for number in STOP:
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)


def received() -> str | None:
    """Name of the first signal that came, or None."""
    return _received


def ignore() -> None:
    """Let a worker process outlive what is meant for its parent: some clusters signal every process of a job."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, _frame: FrameType | None) -> None:
    global _received
    _received = _received or signal.Signals(number).name
