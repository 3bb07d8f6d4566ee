"""Measures drawing images on this machine: prefill, token loop and VQ decode, compared with mamba_ssm's own loop.

Weights and captions are random. The bandwidth floor is the time for moving the blocks' weights and the states once per
token, at the rate of a large copy measured in the same run. No token loop can be faster.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from callbacks.measures.speed import time_drawing
from modules.files import GIB
from modules.omnimamba import kernels
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.llamagen import LlamaGenVQ
from modules.omnimamba.llamagen_layers import LlamaGenConfig
from modules.omnimamba.model import OmniMamba
from modules.timing import copy_rate, timed
from pipelines.benchmark.train import PUBLISHED_VISION
from pipelines.run.hardware import COMPUTE, HardwareConfig, check_hardware


@dataclass(frozen=True, kw_only=True)
class GenerateBenchmarkConfig:
    """What to draw; the defaults are the published model and the paper's batch of 16."""

    batches: tuple[int, ...] = (1, 16, 64, 256)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(vision=PUBLISHED_VISION))
    accelerator: Literal["cpu", "gpu"] = "gpu"
    precision: Literal["float32", "bf16"] = "bf16"
    repeats: int = 3
    decode: bool = True
    """Also decode the codes to pictures, with a VQ-16 with random weights."""
    baseline: bool = True
    """Also measure mamba_ssm generating the same number of tokens, with its CUDA graph."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = self.model.problems()
        if not self.batches or min(self.batches) < 1:
            found.append(f"batches={list(self.batches)} must be numbers of at least 1, for example [1,16]")
        if self.repeats < 1:
            found.append(f"repeats={self.repeats} must be at least 1")
        if self.precision == "bf16" and self.accelerator == "cpu":
            found.append("precision=bf16 needs accelerator=gpu; a CPU computes in float32")
        return found


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """Medians for one batch size, in seconds for the whole batch."""

    batch: int
    prefill_s: float
    loop_s: float
    decode_s: float
    images_per_s: float
    """Of prefill, loop and decode together."""
    floor_s: float | None
    """Bandwidth floor of the loop; None on a CPU."""
    peak_gib: float | None
    """None on a CPU."""
    baseline_s: float | None = None
    """mamba_ssm's prefill and loop; None if not measured."""


@torch.no_grad()
def measure_generate(config: GenerateBenchmarkConfig, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure each batch size; the result also names the machine."""
    check_hardware(HardwareConfig(accelerator=config.accelerator))
    device = torch.device("cuda" if config.accelerator == "gpu" else "cpu")
    with torch.device(device):
        model = OmniMamba(config.model)
    initialise(model, 0)
    model.eval().compute = COMPUTE[config.precision]
    vq = LlamaGenVQ(LlamaGenConfig()).to(device) if config.decode else None
    bandwidth = copy_rate() if device.type == "cuda" else None
    drawn = []
    for batch in config.batches:
        drawn.append(_draw(config, model, vq, batch, bandwidth))
        each = drawn[-1]
        say(
            f"batch {batch}: {each.images_per_s:.2f} images/s; "
            f"prefill {each.prefill_s:.3f} s, loop {each.loop_s:.3f} s, VQ decode {each.decode_s:.3f} s"
        )
    if config.baseline and device.type == "cuda":  # after ours, so that it does not add to our peak memory
        del model, vq
        torch.cuda.empty_cache()
        baseline = kernels.language_model(config.model).to(COMPUTE[config.precision]).eval()
        for number, each in enumerate(drawn):
            seconds = _baseline(config, baseline, each.batch)
            drawn[number] = replace(each, baseline_s=seconds)
            say(f"batch {each.batch}: mamba_ssm's own prefill and loop take {seconds:.3f} s")
    found = {
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "config": asdict(config),
        "copy_gb_per_s": None if bandwidth is None else bandwidth / 1e9,
        "batches": [asdict(each) for each in drawn],
    }
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # plain data


def floor_seconds(model: OmniMamba, batch: int, precision: torch.dtype, bandwidth: float) -> float:
    """Seconds for moving the blocks' weights once and the states twice per token, for one image per batch row."""
    config, size = model.config, torch.finfo(precision).bits // 8
    weights = size * sum(p.numel() for name, p in model.backbone.named_parameters() if ".lora_" not in name)
    state = size * config.n_layer * config.n_heads * config.headdim * config.d_state
    return config.image_tokens * (weights + 2 * batch * state) / bandwidth


def _draw(
    config: GenerateBenchmarkConfig,
    model: OmniMamba,
    vq: LlamaGenVQ | None,
    batch: int,
    bandwidth: float | None,
) -> GenerateResult:
    device, sizes = model.device, config.model
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(0, sizes.vocab_size, (batch, sizes.caption_length + 5), generator=generator).to(device)
    uniforms = torch.rand(batch, sizes.image_tokens, generator=generator).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    time_drawing(model, vq, captions, uniforms)  # kernels are compiled and tuned here
    times = [time_drawing(model, vq, captions, uniforms) for _ in range(config.repeats)]
    prefill, loop, *decode = (statistics.median(part) for part in zip(*times, strict=True))
    precision = COMPUTE[config.precision]
    return GenerateResult(
        batch=batch,
        prefill_s=prefill,
        loop_s=loop,
        decode_s=sum(decode),
        images_per_s=batch / (prefill + loop + sum(decode)),
        floor_s=None if bandwidth is None else floor_seconds(model, batch, precision, bandwidth),
        peak_gib=torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else None,
    )


def _baseline(config: GenerateBenchmarkConfig, model: Any, batch: int) -> float:
    """Seconds for the same number of tokens in mamba_ssm's own loop, with a CUDA graph per token."""
    sizes = config.model
    prompt = torch.randint(0, sizes.vocab_size, (batch, sizes.caption_length + 4), device="cuda")
    length = prompt.shape[1] + sizes.image_tokens

    def work() -> None:
        model.generate(prompt, max_length=length, cg=True, top_k=0, temperature=1.0)

    return statistics.median(timed(work, prompt.device, warmup=1, repeats=config.repeats))
