"""Signals that tell a run to stop. The handler only sets a flag; code that can stop cleanly checks it.

Saving inside a handler would interrupt whatever the process was doing, for example a collective, and hang. This module
imports nothing heavy, so a process can listen before it loads anything.

A handler runs between two steps of Python. A process that waits in C++ for another one never gets there, so a thread
watches too: it ends the process if a wait (`waiting`) goes on after a signal.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

STOP = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""What batch systems send before they end a job."""
PREEMPTED, INTERRUPTED = 75, 130
"""Exit codes: told to stop, to be started again (EX_TEMPFAIL of sysexits.h); stopped by Ctrl-C, as shells count it."""
_POLL_SECONDS = 0.2

_received: str | None = None
_waits: "list[_Wait]" = []
_ours: "list[subprocess.Popen[bytes]]" = []
_must_finish = threading.Lock()
"""Held by work that must be finished."""


@dataclass(eq=False)
class _Wait:
    """A wait that a signal may end."""

    what: str
    patience: float
    tell_after: float
    since: float = field(default_factory=time.monotonic)
    told: bool = False


def listen() -> None:
    """From now on, the signals of `STOP` set the flag. Without a handler they would kill a process that is loading.

    If the process was started with them blocked (slurm/lib.sh), a signal that came earlier sets the flag now.
    """
    for number in STOP:
        signal.signal(number, _note)
    _Watcher.ensure()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)


def received() -> str | None:
    """Name of the first signal received, or None."""
    return _received


def ignore() -> None:
    """Ignore the signals in a worker process; its parent handles them. Some clusters signal every process of a job."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


@contextmanager
def held() -> Iterator[None]:
    """Around the start of processes that will listen: a signal that comes before they do waits for them.

    Does nothing if this process does not listen: then they will not either.
    """
    mask = STOP if signal.getsignal(signal.SIGTERM) is _note else ()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mask)  # which they inherit; `listen` unblocks
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_us(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """From now on, kill ``processes`` when this process ends by `waiting` or `end_now`."""
    _ours.extend(processes)


def end_now(code: int, why: str) -> None:
    """End this process with ``code``, from any thread, once `finishing` work is done."""
    _must_finish.acquire()  # never released: the process ends
    _say(why)
    _end_workers()
    os._exit(code)


@contextmanager
def waiting(what: str, *, patience: float = 0.0, tell_after: float = 5.0) -> Iterator[None]:
    """Around a wait; ``what`` says what for, after ``tell_after`` seconds.

    A signal of `STOP`, or Ctrl-C, ends the process if the wait is not over ``patience`` seconds later. So without
    patience, only wait like this while there is nothing to lose.
    """
    _Watcher.ensure()
    wait = _Wait(what, patience, tell_after)
    _waits.append(wait)
    try:
        yield
    finally:
        _waits.remove(wait)  # threads wait too, so it need not be the last


@contextmanager
def finishing() -> Iterator[None]:
    """Around work in another thread, such as writing a checkpoint: the process does not end by `waiting` meanwhile."""
    with _must_finish:
        yield


def _note(number: int, _frame: FrameType | None = None) -> None:
    global _received
    _received = _received or signal.Signals(number).name


class _Watcher(threading.Thread):
    """Sees signals even if the main thread does not run: Python's C handler writes their numbers to a pipe."""

    _running: "_Watcher | None" = None

    def __init__(self) -> None:
        super().__init__(name="signals", daemon=True)
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._signal: tuple[int, float] | None = None

    @classmethod
    def ensure(cls) -> None:
        """Start the one watcher of this process; only the main thread can."""
        if cls._running is None or not cls._running.is_alive():
            if threading.current_thread() is not threading.main_thread():
                return
            cls._running = cls()
            cls._running.start()

    def run(self) -> None:
        """Look at the pipe and at the current wait."""
        while True:
            if select.select([self._read], [], [], _POLL_SECONDS)[0]:
                for number in os.read(self._read, 64):
                    if number in (*STOP, signal.SIGINT):
                        self._signal = self._signal or (number, time.monotonic())
            wait = _waits[-1] if _waits else None
            if wait is not None:
                self._look_at(wait, time.monotonic())

    def _look_at(self, wait: _Wait, now: float) -> None:
        if not wait.told and now - wait.since > wait.tell_after:
            wait.told = True
            _say(f"waiting for {wait.what}")
        # a little longer than asked for: if Python gets there, the process ends as usual
        if self._signal is not None and now - max(wait.since, self._signal[1]) > wait.patience + 2 * _POLL_SECONDS:
            number, _ = self._signal
            why = f"told to stop by {signal.Signals(number).name} while waiting for {wait.what}; start again to go on"
            end_now(INTERRUPTED if number == signal.SIGINT else PREEMPTED, why)


def _end_workers() -> None:
    """End the worker processes, as Python does at a normal exit, and those of `end_with_us`."""
    for process in _ours:
        process.kill()
    multiprocessing = sys.modules.get("multiprocessing")  # not loaded for its own sake
    if multiprocessing is not None:
        for worker in multiprocessing.active_children():
            worker.kill()


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # no terminal, or no room
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
