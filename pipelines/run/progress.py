"""The progress of training: one moving line on a terminal, or plain lines if output goes to a file."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pipelines.run.console import say


class TrainingProgress:
    """Shows run and stage, step, time left, losses, tokens/s and the last evaluation.

    Without a terminal, at most one plain line is printed every ``seconds``; the last line is always printed.
    """

    def __init__(
        self, name: str, max_steps: int, *, stage: str = "", seconds: float = 10.0, console: Console | None = None
    ) -> None:
        self.title = f"{name} ({stage})" if stage else name
        self.max_steps, self.seconds = max_steps, seconds
        self._console = console or Console()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._first: tuple[int, float] | None = None
        self._printed = 0.0
        self._evaluated_at = -1
        self._evaluated: dict[str, str] = {}

    def watch(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Called with everything that is logged; remembers the first metric of each measure of the last evaluation."""
        for key, value in metrics.items():
            if not key.startswith("eval") or key.count("/") != 2 or value is None:
                continue
            if step != self._evaluated_at:
                self._evaluated_at, self._evaluated = step, {}
            _, measure, number = key.split("/")
            self._evaluated.setdefault(measure, f"{measure} {number} {value:.3g}")

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show ``metrics`` of ``step``."""
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        left = ""
        if step > first_step:
            left = f"{duration((now - first_time) / (step - first_step) * (self.max_steps - step))} left"
        text = self._text(metrics)
        if self._console.is_terminal:
            self._move(step, left, text)
        elif step >= self.max_steps or now - self._printed >= self.seconds:
            self._printed = now
            say("  ".join(part for part in (self.title, f"step {step}/{self.max_steps}", text, left) if part))

    def close(self) -> None:
        """Stop the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _text(self, metrics: Mapping[str, float]) -> str:
        parts = [f"{k.removeprefix('train/')} {v:.3f}" for k, v in metrics.items() if k.startswith("train/loss")]
        parts.append(f"{metrics['train/tokens_per_s']:,.0f} tokens/s")
        if self._evaluated:
            parts.append(f"step {self._evaluated_at}: {', '.join(self._evaluated.values())}")
        return "  ".join(parts)

    def _move(self, step: int, left: str, text: str) -> None:
        if self._bar is None:
            columns = (
                TextColumn(self.title, markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                # before the metrics, which a narrow terminal cuts off
                TextColumn("{task.fields[left]}", markup=False),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(self.title, total=self.max_steps, completed=step, left=left, text=text)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=step, left=left, text=text)


def duration(seconds: float) -> str:
    """A duration in readable form: ``24 s``, ``12 min``, ``5 h 33 min``, ``2 d 3 h``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
