"""Measures one block on a training row, part by part, and what each part would take at this GPU's peak rates.

Seconds instead of the minutes of a whole model: for work on kernels. Weights and inputs are random.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from datamodules.data_config import Counts
from modules.omnimamba.backbone import Backbone
from modules.omnimamba.config import TASKS, ModelConfig
from modules.timing import copy_rate, gemm_tflops
from pipelines.benchmark.profile import Profile, summary
from pipelines.benchmark.train import PUBLISHED_VISION
from pipelines.run.hardware import HardwareConfig, check_hardware, kernel_problems, take_gpu

PARTS = {
    "matrix products": r"nvjet|gemm|cutlass|cublas|splitK",
    "convolution": r"conv",
    "norms": r"norm",
    "scan": r"^(steps|products|forward|backward_\w+)$|chunk_|state_passing|_bmm_",
    "dropout": r"dropout",
}
"""A part by a pattern that finds its kernels' names; the first match counts, and all others are ``REST``."""
REST = "copies, casts, sums"
HALF, FULL = 2, 4


@dataclass(frozen=True, kw_only=True)
class LayerBenchmarkConfig:
    """The row and the model; the defaults are the published model and stage 2."""

    micro_batch: Counts = field(default_factory=lambda: Counts(mmu=3, t2i=48))
    model: ModelConfig = field(default_factory=lambda: ModelConfig(vision=PUBLISHED_VISION))
    hardware: HardwareConfig = field(default_factory=lambda: HardwareConfig(accelerator="gpu"))
    freeze: bool = False
    """Train adapters alone, as in stage 1."""
    warmup: int = 3
    steps: int = 10

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = self.model.problems() + self.hardware.problems()
        found += kernel_problems(self.hardware, self.model, "bf16")
        if self.hardware.accelerator != "gpu":
            found.append("a block's kernels are a GPU's; use hardware.accelerator=gpu")
        if not self.micro_batch.mmu + self.micro_batch.t2i > 0:
            found.append("micro_batch is empty; name samples, for example micro_batch={mmu: 3, t2i: 48}")
        if self.steps < 1 or self.warmup < 1:
            found.append(f"warmup={self.warmup} and steps={self.steps} must be at least 1")
        return found


@dataclass(frozen=True)
class Part:
    """A part of a block, forward and backward together."""

    name: str
    ms: float
    floor_ms: float | None
    """Milliseconds at the GPU's peak rates; None if they are not counted."""
    launches: float
    """Kernels that are started."""


def measure_layer(config: LayerBenchmarkConfig) -> dict[str, Any]:
    """Measure the second of two blocks, which has a residual input, as the difference to one block alone."""
    check_hardware(config.hardware)
    device = take_gpu()
    lengths = config.micro_batch.lengths(config.model, TASKS)
    one, two = (_profile(config, blocks, lengths, device) for blocks in (1, 2))
    rates = gemm_tflops() * 1e12, copy_rate()
    floors = floor_ms(config.model, sum(lengths), *rates, frozen=config.freeze)
    kernels = _difference(two, one)
    found = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "config": asdict(config),
        "ms": sum(ms for ms, _ in kernels.values()),
        "parts": [asdict(part) for part in parts_of(kernels, floors)],
        "kernels": [(name, *value) for name, value in sorted(kernels.items(), key=lambda item: -item[1][0])],
    }
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # plain data


def floor_ms(
    model: ModelConfig, positions: int, flops: float, bytes_per_second: float, *, frozen: bool = False
) -> dict[str, float]:
    """What the parts of one block take if products run at ``flops`` and all else at ``bytes_per_second``.

    Every input and output once, in bf16, the residual in float32; convolution and output of the norm are computed again
    in the backward pass. A ``frozen`` block's weights have no gradients.
    """
    width, inner = model.d_model, model.d_inner
    channels = inner + 2 * model.d_state
    columns = inner + channels + model.n_heads
    add_norm = (2 * HALF + 2 * FULL) * width + (2 * HALF + 3 * FULL) * width
    gated_norm = 3 * HALF * inner + 6 * HALF * inner
    moved = {
        "convolution": (2 * 2 + 3) * HALF * channels,
        "norms": add_norm + gated_norm,
        "scan": (2 + 3) * HALF * inner,
        "dropout": (2 + 2 + 3) * HALF * width if model.adapters.dropout and model.lora == "task" else 0,
    }
    found = {name: 1000 * positions * size / bytes_per_second for name, size in moved.items()}
    products = (4 if frozen else 6) * positions * width * (columns + inner)
    return {"matrix products": 1000 * products / flops, **found}


def part_of(kernel: str) -> str:
    """The part of a block that a kernel belongs to, by its name."""
    return next((name for name, pattern in PARTS.items() if re.search(pattern, kernel)), REST)


def parts_of(kernels: Mapping[str, tuple[float, float]], floors: Mapping[str, float]) -> list[Part]:
    """Kernels' times and launches, summed up by part."""
    return [
        Part(
            name,
            ms=sum(ms for kernel, (ms, _) in kernels.items() if part_of(kernel) == name),
            floor_ms=floors.get(name),
            launches=sum(count for kernel, (_, count) in kernels.items() if part_of(kernel) == name),
        )
        for name in (*PARTS, REST)
    ]


def _profile(config: LayerBenchmarkConfig, blocks: int, lengths: list[int], device: torch.device) -> Profile:
    hardware, width = config.hardware, config.model.d_model
    with device:
        backbone = Backbone(replace(config.model, n_layer=blocks))
        x_1RD = torch.randn(1, sum(lengths), width, dtype=torch.bfloat16, requires_grad=True)
    for name, parameter in backbone.named_parameters():
        torch.nn.init.normal_(parameter, std=0.02)
        parameter.requires_grad = "lora_" in name or not config.freeze
    backbone.choose(scan=hardware.scan, projection=hardware.projection, recompute=hardware.recompute)
    mmu = config.micro_batch.mmu * config.model.length("mmu")
    gradient_RD = torch.randn(sum(lengths), width, device=device, dtype=torch.bfloat16)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            y_RD = backbone.run_row(x_1RD, (mmu, sum(lengths) - mmu), lengths, torch.bfloat16)
        torch.autograd.backward(y_RD, gradient_RD.to(y_RD.dtype))
        backbone.zero_grad()
        x_1RD.grad = None

    for _ in range(config.warmup):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(config.steps):
            step()
        torch.cuda.synchronize()
    return summary(profiler, config.steps, top=1000)


def _difference(more: Profile, less: Profile) -> dict[str, tuple[float, float]]:
    """ms and launches a step of the kernels that ``more`` has beyond ``less``."""
    known = {name: (ms, count) for name, ms, count in less.kernels}
    pairs = ((name, ms, count, known.get(name, (0.0, 0.0))) for name, ms, count in more.kernels)
    return {name: (ms - was[0], count - was[1]) for name, ms, count, was in pairs if count > was[1]}
