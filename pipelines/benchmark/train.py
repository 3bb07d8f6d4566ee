"""Measures training on this machine: a stage of our pipeline, and baselines doing the same work.

Weights are random, and one synthetic batch is repeated, without data loader and vision encoder. Rates are medians over
steps after a warm-up. The GEMM rate that utilisation refers to is measured in the same run.
"""

import gc
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.data_config import Counts
from modules.files import GIB
from modules.flops import model_flops
from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.row_mixer import serves
from modules.optim import OptimConfig
from modules.stage_modules import STAGE_MODULES
from modules.stages import STAGES, StageConfig
from modules.timing import Clock, gemm_tflops, timed
from pipelines.benchmark.baselines import mamba_ssm_step, published_step
from pipelines.benchmark.profile import Profile, ProfileSteps
from pipelines.run.hardware import COMPUTE, HardwareConfig, check_hardware, kernel_problems, take_gpu
from pipelines.run.strategies import build_strategy

PROFILED = 3
"""Steps that are profiled."""
PUBLISHED_VISION = VisionConfig(kind="features", given_patches=729, given_width=2176)


@dataclass(frozen=True, kw_only=True)
class TrainBenchmarkConfig:
    """What to train and for how long; the defaults are the published model and stage 2."""

    stage: Literal["mmu_pretrain", "t2i_pretrain", "unified_finetune"] = "unified_finetune"
    micro_batch: Counts = field(default_factory=lambda: Counts(mmu=3, t2i=48))
    model: ModelConfig = field(default_factory=lambda: ModelConfig(vision=PUBLISHED_VISION))
    hardware: HardwareConfig = field(default_factory=lambda: HardwareConfig(accelerator="gpu"))
    precision: Literal["float32", "bf16"] = "bf16"
    deterministic: bool = False
    """Like trainer.deterministic, to measure its cost."""
    warmup: int = 5
    steps: int = 15
    lr: float = 1e-4
    baseline: bool = True
    """Also measure a loop like the published one, which the ratios refer to."""
    language_model: bool = False
    """Also measure mamba_ssm's MambaLMHeadModel: same shape, plain autocast, logits of all positions."""
    profile: bool = False
    """Also record which kernels take a step's time."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = self.model.problems() + self.hardware.problems()
        found += kernel_problems(self.hardware, self.model, self.precision)
        for task in STAGES[self.stage].tasks:
            if self.micro_batch.of(task) < 1:
                found.append(f"stage {self.stage} trains {task}: micro_batch.{task} must be at least 1")
        if self.profile and self.hardware.accelerator != "gpu":
            found.append("profile=true needs a GPU; leave it out, or add hardware.accelerator=gpu")
        for name in ("warmup", "steps"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        return found


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The figures of one implementation."""

    seconds_per_step: float
    tokens_per_second: float
    peak_gib: float | None
    """None on a CPU."""
    first_loss: float
    last_loss: float
    tflops: float | None = None
    """Model TFLOP/s of one device: matrix products of projections and heads, forward and backward, without
    recomputation. None for the baseline, which computes other products."""
    of_gemm: float | None = None
    """``tflops`` as a share of the GEMM rate of the same run; bf16 only. (``system/mfu`` refers to the GPU's peak.)"""


def measure_train(config: TrainBenchmarkConfig) -> dict[str, Any]:
    """Measure our stage, the baseline and the GEMM rate; the result also names the machine."""
    check_hardware(config.hardware, deterministic=config.deterministic)
    ours, profile = _ours(config)
    gemm = gemm_tflops() if config.hardware.accelerator == "gpu" else None
    if gemm is not None and ours.tflops is not None and config.precision == "bf16":
        ours = replace(ours, of_gemm=ours.tflops / gemm)
    found: dict[str, Any] = {
        "gpu": _device_name(config.hardware),
        "torch": torch.__version__,
        "config": asdict(config),
        "gemm_tflops": gemm,
        "scan": _scan(config),
        "ours": asdict(ours),
    }
    if profile is not None:
        found["profile"] = asdict(profile)
    if config.hardware.accelerator == "gpu":
        if config.baseline:
            batch = synthetic_batch(config.model, config.micro_batch, STAGES[config.stage].tasks)
            found["published"] = asdict(_baseline(config, lambda: published_step(config, batch, torch.device("cuda"))))
        if config.language_model:
            found["mamba_ssm"] = asdict(_baseline(config, lambda: mamba_ssm_step(config)))
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # plain data


def _scan(config: TrainBenchmarkConfig) -> str:
    """Whose kernels the scan ran on."""
    if config.hardware.accelerator != "gpu":
        return "reference"
    row = config.micro_batch.lengths(config.model, STAGES[config.stage].tasks)
    ours = serves(row, config.model, config.hardware.scan, COMPUTE[config.precision], torch.device("cuda"))
    return "rows" if ours else "mamba_ssm"


def random_model(config: ModelConfig, hardware: HardwareConfig, precision: str) -> OmniMamba:
    """A model with random weights where ``hardware`` says, set up as a run sets it up."""
    device = take_gpu() if hardware.accelerator == "gpu" else torch.device("cpu")
    with device:
        model = OmniMamba(config)
    initialise(model, 0, device)
    model.compute = COMPUTE[precision]
    model.backbone.choose(scan=hardware.scan, projection=hardware.projection, recompute=hardware.recompute)
    return model


def synthetic_batch(model: ModelConfig, counts: Counts, tasks: tuple[str, ...], seed: int = 0) -> dict[str, Any]:
    """A random batch in the form of the data module's, with image features for MMU."""
    generator = torch.Generator().manual_seed(seed)

    def text(*shape: int) -> Tensor:
        return torch.randint(0, model.vocab_size, shape, generator=generator)

    batch: dict[str, Any] = {}
    if "mmu" in tasks:
        # answers are a third of the text, as in the mixes on average
        labels = text(counts.mmu, model.mmu_text_length)
        labels[:, model.mmu_text_length // 3 :] = -100
        features = torch.randn(counts.mmu, model.vision.patches, model.vision.width, generator=generator)
        batch["mmu"] = {
            "features": features,
            "input_ids": text(counts.mmu, model.mmu_text_length + 4),
            "labels": labels,
            "labelled": (labels.flatten() != -100).nonzero()[:, 0],
        }
    if "t2i" in tasks:
        codes = torch.randint(0, model.image_vocab, (counts.t2i, model.image_tokens), generator=generator)
        batch["t2i"] = {"caption_ids": text(counts.t2i, model.caption_length + 5), "image_ids": codes}
    return batch


class _Repeated(Dataset[Any]):
    def __init__(self, batch: dict[str, Any], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, _index: int) -> dict[str, Any]:
        return self.batch


class _Steps(pl.Callback):
    """Collects the times of steps on the device, and their losses."""

    def __init__(self, device: torch.device) -> None:
        self.clock = Clock(device)
        self.losses: list[Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.clock.mark()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        self.losses.append(out["loss"].detach())


def _ours(config: TrainBenchmarkConfig) -> tuple[TrainResult, Profile | None]:
    if torch.cuda.is_available():
        gc.collect()  # free what an earlier measurement in this process left behind
        torch.cuda.reset_peak_memory_stats()
    stage_class = STAGE_MODULES[config.stage]
    counts, tasks = config.micro_batch, STAGES[config.stage].tasks
    model = random_model(config.model, config.hardware, config.precision)
    profiled = ProfileSteps(config.warmup + config.steps + 1, PROFILED) if config.profile else None
    count = config.warmup + config.steps + 1 + (PROFILED if profiled else 0)
    optim = OptimConfig(lr=config.lr)
    stage = stage_class(model, StageConfig(name=config.stage), optim, max_steps=10 * count, seed=0)
    batch = synthetic_batch(config.model, counts, tasks)
    steps = _Steps(model.device)
    trainer = pl.Trainer(
        accelerator=config.hardware.accelerator,
        devices=config.hardware.devices,
        num_nodes=config.hardware.nodes,
        strategy=build_strategy(config.hardware),
        deterministic=config.deterministic or None,
        max_steps=count,
        gradient_clip_val=1.0,
        callbacks=[steps, *([profiled] if profiled else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(stage, DataLoader(_Repeated(batch, count * trainer.world_size), batch_size=None))
    seconds = statistics.median(steps.clock.seconds()[config.warmup : config.warmup + config.steps])
    tokens = counts.positions(config.model, tasks)
    result = TrainResult(
        seconds_per_step=seconds,
        tokens_per_second=tokens * trainer.world_size / seconds,
        peak_gib=_peak_gib(config.hardware),
        tflops=model_flops(stage, batch, tokens) / seconds / 1e12,
        **_first_and_last(steps.losses, config.lr),
    )
    return result, None if profiled is None else profiled.found


def _baseline(config: TrainBenchmarkConfig, build: Callable[[], Callable[[], Tensor]]) -> TrainResult:
    """Measure a baseline's step; ``build`` makes model and step."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = build()
    losses: list[Tensor] = []
    seconds = statistics.median(
        timed(lambda: losses.append(step()), torch.device("cuda"), warmup=config.warmup, repeats=config.steps)
    )
    tokens = config.micro_batch.positions(config.model, STAGES[config.stage].tasks)
    return TrainResult(
        seconds_per_step=seconds,
        tokens_per_second=tokens / seconds,
        peak_gib=_peak_gib(config.hardware),
        **_first_and_last(losses, config.lr),
    )


def _peak_gib(config: HardwareConfig) -> float | None:
    return torch.cuda.max_memory_allocated() / GIB if config.accelerator == "gpu" else None


def _first_and_last(losses: list[Tensor], lr: float) -> dict[str, float]:
    first, last = float(losses[0]), float(losses[-1])
    if not math.isfinite(last):
        raise ValueError(f"the loss is {last} after {len(losses)} steps with lr={lr:g}; choose a smaller lr")
    return {"first_loss": first, "last_loss": last}


def _device_name(config: HardwareConfig) -> str:
    return torch.cuda.get_device_name() if config.accelerator == "gpu" else "CPU"
