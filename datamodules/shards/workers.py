"""Runs jobs in this process or in several, each with one torch thread.

One thread, because the number of threads changes the last bits of a sum, and the built bytes must not depend on it.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_end
from threading import Thread
from typing import Any, TypeVar

Job = TypeVar("Job")
Tick = Callable[[], None]
"""Called once for every finished row."""
Work = Callable[[Job, Tick], None]
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class _Worker:
    """The state of a worker process."""

    number: int
    work: Work[Any]
    ticks: Any
    stop: Any

    def tick(self) -> None:
        with self.ticks.get_lock():
            self.ticks.value += 1
        if self.stop.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """The main process asked the workers to stop."""


_worker: _Worker | None = None


def worker_number() -> int:
    """The number of this worker process, from 0; also 0 in the main process."""
    return _worker.number if _worker else 0


def run_jobs(work: Work[Job], jobs: Sequence[Job], *, processes: int, report: Callable[[int], None]) -> None:
    """Call ``work(job, tick)`` for every job; ``report`` is called with the number of ticks so far.

    ``work`` and the jobs must be picklable if ``processes`` is above 1. The first error stops all jobs.

    Raises:
        ChildProcessError: a worker process died.
    """
    processes = min(processes, len(jobs))
    if processes > 1:
        _run_in_processes(work, jobs, processes, report)
    else:
        _run_here(work, jobs, report)


def _run_here(work: Work[Job], jobs: Sequence[Job], report: Callable[[int], None]) -> None:
    import torch

    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        report(done)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs:
            work(job, tick)
    finally:
        torch.set_num_threads(threads)


def _run_in_processes(work: Work[Job], jobs: Sequence[Job], processes: int, report: Callable[[int], None]) -> None:
    # spawn: a forked process cannot use CUDA or the locks of its parent's threads
    context = multiprocessing.get_context("spawn")
    numbers, ticks, stop = context.Value("q", 0), context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(work, numbers, ticks, stop)) as pool:
        try:
            with _ctrl_c_for_us_alone():
                waiting = {pool.submit(_call, job) for job in jobs}
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for each in done:
                    each.result()
                report(ticks.value)
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ChildProcessError(
                    "a worker process died (killed, or out of memory). Finished shards are kept: start again to "
                    "continue, with fewer processes if memory ran out"
                ) from error
            raise


@contextmanager
def _ctrl_c_for_us_alone() -> Iterator[None]:
    """Shield processes started in this block from Ctrl-C, which is sent to the whole group; ``stop`` ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(work: Work[Any], numbers: Any, ticks: Any, stop: Any) -> None:
    """Make this process a worker."""
    import torch

    global _worker
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with numbers.get_lock():
        _worker = _Worker(numbers.value, work, ticks, stop)
        numbers.value += 1


def _end_with_parent() -> None:
    """Exit with the main process; otherwise, if it is killed, its workers would wait for jobs forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_end([parent.sentinel])
    os._exit(1)


def _call(job: Any) -> None:
    assert _worker is not None
    _worker.work(job, _worker.tick)
