"""A line of progress that fits its terminal: what matters least is left out first."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.text import Text

_BAR = 20
"""Columns of a bar."""
_GAP = "  "


@dataclass(frozen=True)
class Part:
    """A piece of the line: a text, or a bar if ``share`` says how much is done."""

    text: str
    place: int
    """How long it stays as the terminal gets narrower: 0 longest."""
    share: float | None = None

    @property
    def width(self) -> int:
        """In columns of the terminal."""
        return cell_len(self.text) if self.share is None else _BAR


def fitted(parts: Sequence[Part], width: int) -> list[Part]:
    """Those of ``parts`` for which a line of ``width`` columns has room, in their order; at least the first of all."""
    kept = [part for part in parts if part.width]
    while len(kept) > 1 and sum(part.width + len(_GAP) for part in kept) - len(_GAP) > width:
        kept.remove(max(kept, key=lambda part: part.place))
    return kept


class MovingLine:
    """One line on a terminal that is written again and again.

    If it is ``timed``, it ends with the time since it was first shown, and leaves the terminal when it stops.
    """

    def __init__(self, console: Console, *, timed: bool = False) -> None:
        self._progress = Progress(_Fitted(console, timed=timed), console=console, transient=timed)
        self._task: TaskID | None = None

    def show(self, parts: Sequence[Part]) -> None:
        """Replace what the line says."""
        if self._task is None:
            self._task = self._progress.add_task("", total=None, parts=parts)
            self._progress.start()
        self._progress.update(self._task, parts=parts)

    def stop(self) -> None:
        """Write no more."""
        self._progress.stop()


class _Fitted(ProgressColumn):
    def __init__(self, console: Console, *, timed: bool) -> None:
        super().__init__()
        self._console, self._timed = console, timed

    def render(self, task: Task) -> Text:
        """The parts for which there is room now: the width may have changed."""
        line = Text(no_wrap=True, overflow="ellipsis")
        time = [Part(clock(task.elapsed or 0), 4)] if self._timed else []
        for number, part in enumerate(fitted([*task.fields["parts"], *time], self._console.width)):
            line.append(_GAP if number else "")
            if part.share is None:
                line.append(part.text)
            else:
                done = round(min(1.0, part.share) * _BAR)
                line.append("━" * done, "bar.complete").append("━" * (_BAR - done), "bar.back")
        return line


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
