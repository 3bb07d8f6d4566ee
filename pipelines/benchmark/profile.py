"""What a GPU does during training steps: how long it is idle, and which kernels take its time."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

COMMUNICATION = "nccl"
"""How the names of the kernels begin that exchange numbers between GPUs."""
TOP, NAME = 30, 70
"""Kernels that are named, and characters of their names that are kept."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A step's time on the GPU, in milliseconds."""

    step_ms: float
    idle_share: float
    communication_share: float
    """Share in which it exchanges numbers with other GPUs."""
    exposed_share: float
    """Share in which it does nothing else meanwhile."""
    launches: float
    kernels: list[tuple[str, float, float]]
    """Name, ms a step and launches a step of those that take longest."""


class ProfileSteps(pl.Callback):
    """Records ``count`` steps from step ``first`` on."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count
        self.found: Profile | None = None
        self._profiler = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start before the first step that counts."""
        if batch_idx == self.first:
            torch.cuda.synchronize()
            self._profiler.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Stop after the last."""
        if i == self.first + self.count - 1:
            torch.cuda.synchronize()
            self._profiler.stop()
            self.found = summary(self._profiler, self.count)


def summary(profiler: profile, steps: int, top: int = TOP) -> Profile:
    """What the GPU did in ``steps`` recorded steps, with the ``top`` kernels that took longest."""
    recorded = profiler.events() or []  # type: ignore[no-untyped-call]
    events = [each for each in recorded if each.device_type == DeviceType.CUDA and not each.is_user_annotation]
    spans = [(each.name, each.time_range.start, each.time_range.end) for each in events]
    begin, end = min(start for _, start, _ in spans), max(end for _, _, end in spans)
    whole, busy = end - begin, covered((start, end) for _, start, end in spans)
    exchanging = covered((start, end) for name, start, end in spans if name.startswith(COMMUNICATION))
    alone = covered((start, end) for name, start, end in spans if not name.startswith(COMMUNICATION))
    times: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    for each in events:
        name = each.name[:NAME]
        times[name] += each.time_range.end - each.time_range.start
        counts[name] += 1
    longest = sorted(times, key=lambda name: -times[name])[:top]
    return Profile(
        step_ms=whole / steps / 1000,
        idle_share=1 - busy / whole,
        communication_share=exchanging / whole,
        exposed_share=(busy - alone) / whole,
        launches=len(events) / steps,
        kernels=[(name, times[name] / steps / 1000, counts[name] / steps) for name in longest],
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much time the spans cover together; they may overlap."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
