"""The progress of building shards: a bar on a terminal, plain lines if output goes to a file."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipelines.run.console import say


class BuildProgress:
    """Shows rows done, rows/s and time left; use it as a context manager.

    Rows of an earlier start count as done, but not for the rate. Without a terminal, at most one line is printed every
    ``seconds``.
    """

    def __init__(self, name: str, *, seconds: float = 10.0, console: Console | None = None) -> None:
        self.name, self.seconds = name, seconds
        self._console = console or Console()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._first: tuple[int, float] | None = None
        self._printed = 0.0

    def __enter__(self) -> "BuildProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` rows are done."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._printed = (done, now), now
            if done:
                say(f"{self.name}: continuing after {done} of {total}")
        elif done < total and now - self._printed < (0.1 if self._console.is_terminal else self.seconds):
            return
        self._printed = now
        text = self._rate(done, total, now)
        if self._console.is_terminal:
            self._move(done, total, text)
        elif text:
            say(f"{self.name}  {done}/{total}  {text}")

    def _rate(self, done: int, total: int, now: float) -> str:
        assert self._first is not None
        before, start = self._first
        if done == before:
            return ""
        rate = (done - before) / (now - start)
        return f"{rate:,.1f} samples/s  {clock((total - done) / rate)} left"

    def _move(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            columns = (
                TextColumn(self.name),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(self.name, total=total, completed=done, text=text)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done, text=text)


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
