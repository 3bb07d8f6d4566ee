"""Times work on a device, and measures the device's peak rates."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Time marks on a device. On a GPU they are CUDA events, so nothing waits between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []
        self._wait()

    def mark(self) -> None:
        """Set a mark after all work so far."""
        if self.device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Seconds from each mark to the next."""
        self._wait()
        if self.device.type != "cuda":
            return [later - earlier for earlier, later in pairwise(self._marks)]
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairwise(self._marks)]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def timed(work: Callable[[], Any], device: torch.device, *, warmup: int = 0, repeats: int) -> list[float]:
    """Seconds on ``device`` for each of ``repeats`` calls of ``work``, after ``warmup`` calls that do not count."""
    for _ in range(warmup):
        work()
    clock = Clock(device)
    clock.mark()
    for _ in range(repeats):
        work()
        clock.mark()
    return clock.seconds()


def gemm_tflops(size: int = 8192) -> float:
    """TFLOP/s of a large bf16 matrix product on this GPU."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / statistics.median(timed(lambda: a @ b, a.device, warmup=5, repeats=20)) / 1e12


def copy_rate(size: int = 2**30) -> float:
    """Bytes per second that this GPU reads and writes when it copies ``size`` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / statistics.median(timed(lambda: target.copy_(source), source.device, repeats=10))
