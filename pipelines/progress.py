"""The progress of training on a terminal: one line that moves, or plain lines where output goes to a file."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipelines.console import say


class TrainingProgress:
    """Shows step, losses, tokens/s and time left at every log.

    On a terminal the bar is a context of its own; elsewhere at most one plain line every ``seconds`` is printed, and
    always the last.
    """

    def __init__(self, name: str, max_steps: int, *, seconds: float = 10.0) -> None:
        self.name, self.max_steps, self.seconds = name, max_steps, seconds
        self._console = Console()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._first: tuple[int, float] | None = None
        self._printed = 0.0

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Report ``metrics`` of ``step``."""
        losses = "  ".join(
            f"{k.removeprefix('train/')} {v:.3f}" for k, v in metrics.items() if k.startswith("train/loss")
        )
        text = f"{losses}  {metrics['train/tokens_per_s']:,.0f} tokens/s"
        if self._console.is_terminal:
            self._move(step, text)
            return
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        if step < self.max_steps and now - self._printed < self.seconds:
            return
        self._printed = now
        left = (now - first_time) / max(1, step - first_step) * (self.max_steps - step)
        remaining = f"  {left:.0f} s left" if step > first_step else ""
        say(f"{self.name}  step {step}/{self.max_steps}  {text}{remaining}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def _move(self, step: int, text: str) -> None:
        if self._bar is None:
            columns = (
                TextColumn(self.name),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(self.name, total=self.max_steps, completed=step, text=text)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=step, text=text)
