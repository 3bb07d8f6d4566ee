"""The progress of training: one moving line on a terminal, or plain lines if output goes to a file."""

import time
from collections.abc import Mapping

from rich.console import Console

from pipelines.run.console import say
from pipelines.run.line import MovingLine, Part


class TrainingProgress:
    """Shows run and stage, step, time left, losses, tokens/s and the last evaluation.

    On a narrow terminal the step, the loss and the time left stay longest.
    Without a terminal, at most one plain line is printed every ``seconds``; the last line is always printed.
    """

    def __init__(
        self, name: str, max_steps: int, *, stage: str = "", seconds: float = 10.0, console: Console | None = None
    ) -> None:
        self.name, self.stage = name, f"({stage})" if stage else ""
        self.max_steps, self.seconds = max_steps, seconds
        self._console = console or Console()
        self._line: MovingLine | None = None
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
        if self._console.is_terminal:
            self._line = self._line or MovingLine(self._console)
            share = step / self.max_steps
            before = [Part(self.name, 3), Part(self.stage, 5), Part("", 8, share), Part(f"{step}/{self.max_steps}", 0)]
            self._line.show([*before, Part(left, 2), *self._told(metrics)])
        elif step >= self.max_steps or now - self._printed >= self.seconds:
            self._printed = now
            title = f"{self.name} {self.stage}".rstrip()
            told = [part.text for part in self._told(metrics)]
            say("  ".join(part for part in (title, f"step {step}/{self.max_steps}", *told, left) if part))

    def close(self) -> None:
        """Stop the line and leave it on the screen."""
        if self._line is not None:
            self._line.stop()

    def _told(self, metrics: Mapping[str, float]) -> list[Part]:
        losses = {key.removeprefix("train/"): value for key, value in metrics.items() if key.startswith("train/loss")}
        parts = [Part(f"{name} {value:.3f}", 1 if name == "loss" else 4) for name, value in losses.items()]
        parts.append(Part(f"{metrics['train/tokens_per_s']:,.0f} tokens/s", 6))
        if self._evaluated:
            parts.append(Part(f"step {self._evaluated_at}: {', '.join(self._evaluated.values())}", 7))
        return parts


def duration(seconds: float) -> str:
    """A duration in readable form: ``24 s``, ``12 min``, ``5 h 33 min``, ``2 d 3 h``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
