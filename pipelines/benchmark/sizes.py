"""Measures how time and memory of a training step grow with batch and length on this machine, until memory ends.

T2I sequences of stage 2 with random weights and ids, one model for all sizes. A line is fitted to each length: a fixed
cost a step, and a cost a position.
"""

import gc
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from datamodules.data_config import Counts
from modules.files import GIB
from modules.objectives import task_losses
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.model import Batch, OmniMamba
from modules.optim import OptimConfig, build_optimizer
from modules.stages import STAGES
from modules.timing import timed
from modules.trainable import set_trainable
from pipelines.benchmark.train import PUBLISHED_VISION, random_model, synthetic_batch
from pipelines.run.hardware import HardwareConfig, check_hardware, kernel_problems


@dataclass(frozen=True, kw_only=True)
class SizesBenchmarkConfig:
    """Which sizes; the defaults are the published model's."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    lengths: tuple[int, ...] = (329, 1024, 2048, 4096, 8192)
    """Positions of a sequence; a picture fills what the caption leaves."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(vision=PUBLISHED_VISION, t2i_positions=8192))
    hardware: HardwareConfig = field(default_factory=lambda: HardwareConfig(accelerator="gpu"))
    precision: Literal["float32", "bf16"] = "bf16"
    warmup: int = 2
    repeats: int = 3

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = self.model.problems() + self.hardware.problems()
        found += kernel_problems(self.hardware, self.model, self.precision)
        least = self.model.caption_length + 6
        if not self.lengths or min(self.lengths) < least or max(self.lengths) > self.model.t2i_positions:
            found.append(
                f"lengths={list(self.lengths)} must lie between {least} (a caption and one token of a picture) and "
                f"model.t2i_positions={self.model.t2i_positions}"
            )
        if not self.batches or min(self.batches) < 1:
            found.append(f"batches={list(self.batches)} must be numbers of at least 1, for example [1,16]")
        if self.warmup < 1 or self.repeats < 1:
            found.append(f"warmup={self.warmup} and repeats={self.repeats} must be at least 1")
        return found


@dataclass(frozen=True)
class Point:
    """One size; None where memory ended."""

    length: int
    batch: int
    seconds: float | None
    peak_gib: float | None
    """None on a CPU, too."""


@dataclass(frozen=True)
class Line:
    """What the points of one length lie on."""

    length: int
    fixed_ms: float
    """Of a step, whatever its batch."""
    us_a_position: float
    largest: int
    """The largest batch that fitted."""
    ended: int | None
    """The batch at which memory ended; None if all fitted."""


def measure_sizes(config: SizesBenchmarkConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all sizes; larger batches are left out after one that does not fit."""
    check_hardware(config.hardware)
    model = random_model(config.model, config.hardware, config.precision)
    set_trainable(model, STAGES["unified_finetune"].trainable)
    optimizer, _ = build_optimizer(model, OptimConfig(), max_steps=10**6)
    points: list[Point] = []
    for length in config.lengths:
        for batch in config.batches:
            points.append(_measured(config, model, optimizer, length, batch))
            say(_told(points[-1]))
            if points[-1].seconds is None:
                break
    found = {
        "gpu": torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "config": asdict(config),
        "points": [asdict(point) for point in points],
        "lines": [asdict(line) for line in lines_of(points)],
    }
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # plain data


def lines_of(points: Sequence[Point]) -> list[Line]:
    """A line for each length with at least two points that fitted, by least squares over the positions of a step."""
    found = []
    for length in dict.fromkeys(point.length for point in points):
        own = [point for point in points if point.length == length]
        fitted = [(point.batch, point.seconds) for point in own if point.seconds is not None]
        if len(fitted) < 2:
            continue
        positions, seconds = np.array([(length * batch, time) for batch, time in fitted]).T
        slope, fixed = np.polyfit(positions, seconds, 1)
        ended = next((point.batch for point in own if point.seconds is None), None)
        largest = max(batch for batch, _ in fitted)
        found.append(Line(length, 1e3 * float(fixed), 1e6 * float(slope), largest, ended))
    return found


def _measured(
    config: SizesBenchmarkConfig, model: OmniMamba, optimizer: torch.optim.Optimizer, length: int, batch: int
) -> Point:
    device, sizes = model.device, replace(config.model, image_tokens=length - config.model.caption_length - 5)
    made = synthetic_batch(sizes, Counts(t2i=batch), ("t2i",))["t2i"]
    inputs: Batch = {"t2i": {name: ids.to(device) for name, ids in made.items()}}

    def step() -> None:
        optimizer.zero_grad()
        task_losses(model(inputs))["t2i"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = statistics.median(timed(step, device, warmup=config.warmup, repeats=config.repeats))
    except torch.OutOfMemoryError:
        optimizer.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        return Point(length, batch, None, None)
    return Point(length, batch, seconds, torch.cuda.max_memory_allocated() / GIB if gpu else None)


def _told(point: Point) -> str:
    size = f"{point.batch} x {point.length}"
    if point.seconds is None:
        return f"{size}: out of memory"
    memory = "" if point.peak_gib is None else f", {point.peak_gib:.1f} GiB"
    return f"{size}: {point.seconds:.3f} s, {point.batch * point.length / point.seconds:,.0f} tokens/s{memory}"
