"""The progress of work that is counted: a line that moves on a terminal, plain lines if output goes to a file."""

import time
from types import TracebackType

from rich.console import Console

from pipelines.run.console import say
from pipelines.run.line import MovingLine, Part, clock


class CountProgress:
    """Shows how much of something is done, the rate and the time left; use it as a context manager.

    What an earlier start did counts as done, but not for the rate. Without a terminal, at most one line is printed
    every ``seconds``. ``then`` says what follows when all is done, if that takes its time too.
    """

    def __init__(
        self, name: str, *, unit: str = "samples", then: str = "", seconds: float = 10.0, console: Console | None = None
    ) -> None:
        self.name, self.unit, self.then, self.seconds = name, unit, then, seconds
        self._console = console or Console()
        self._line: MovingLine | None = None
        self._first: tuple[int, float] | None = None
        self._printed = 0.0

    def __enter__(self) -> "CountProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._line is not None:
            self._line.stop()

    def show(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` are done."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._printed = (done, now), now
            if done:
                say(f"{self.name}: continuing after {done} of {total}")
        elif done < total and now - self._printed < (0.1 if self._console.is_terminal else self.seconds):
            return
        self._printed = now
        rate, left = self._rate(done, total, now)
        if self._console.is_terminal:
            self._line = self._line or MovingLine(self._console)
            share = done / total if total else 1.0
            parts = [Part(self.name, 2), Part("", 4, share), Part(f"{done}/{total}", 0), Part(rate, 3), Part(left, 1)]
            self._line.show(parts)
        elif rate:
            say(f"{self.name}  {done}/{total}  {rate}  {left}")

    def _rate(self, done: int, total: int, now: float) -> tuple[str, str]:
        assert self._first is not None
        before, start = self._first
        if done == before or now == start:
            return "", self.then if done >= total else ""
        rate = (done - before) / (now - start)
        left = self.then if self.then and done >= total else f"{clock((total - done) / rate)} left"
        return f"{rate:,.1f} {self.unit}/s", left


class PieceProgress:
    """Names the piece of work that is being done, of a few that may each take long; use it as a context manager.

    On a terminal a line with the time that has passed, which goes away at the end. Elsewhere at most one line is
    printed every ``seconds``, and none in the first of them.
    """

    def __init__(self, name: str, *, seconds: float = 2.0, console: Console | None = None) -> None:
        self.name, self.seconds = name, seconds
        self._console = console or Console()
        self._line: MovingLine | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> "PieceProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._line is not None:
            self._line.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Report that ``what`` begins, after ``done`` of ``total`` pieces."""
        number = f"{done + 1}/{total}"
        if self._console.is_terminal:
            self._line = self._line or MovingLine(self._console, timed=True)
            self._line.show([Part(self.name, 2), Part("", 3, done / total), Part(number, 1), Part(what, 0)])
        elif time.monotonic() - self._printed >= self.seconds:
            self._printed = time.monotonic()
            say(f"{self.name}  {number}  {what}")
