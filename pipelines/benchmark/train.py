"""Measures training on this machine: a stage of our pipeline, and mamba_ssm's own language model doing the same work.

Weights are random, and one synthetic batch is repeated, without data loader and vision encoder. Rates are medians over
steps after a warm-up. The GEMM rate that utilisation refers to is measured in the same run.
"""

import gc
import json
import math
import statistics
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from datamodules.data_config import Counts
from modules.files import GIB
from modules.flops import model_flops
from modules.omnimamba import kernels
from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.optim import OptimConfig
from modules.stage_modules import STAGE_MODULES
from modules.stages import STAGES, StageConfig
from modules.timing import Clock, gemm_tflops, timed
from pipelines.run.hardware import COMPUTE, HardwareConfig, check_hardware, take_gpu
from pipelines.run.strategies import build_strategy

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
    """Also measure mamba_ssm's MambaLMHeadModel: same shape, plain autocast, logits of all positions."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = self.model.problems()
        for task in STAGES[self.stage].tasks:
            if self.micro_batch.of(task) < 1:
                found.append(f"stage {self.stage} trains {task}: micro_batch.{task} must be at least 1")
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
    ours = _ours(config)
    gemm = gemm_tflops() if config.hardware.accelerator == "gpu" else None
    if gemm is not None and ours.tflops is not None and config.precision == "bf16":
        ours = replace(ours, of_gemm=ours.tflops / gemm)
    found: dict[str, Any] = {
        "gpu": _device_name(config.hardware),
        "torch": torch.__version__,
        "config": asdict(config),
        "gemm_tflops": gemm,
        "ours": asdict(ours),
    }
    if config.baseline and config.hardware.accelerator == "gpu":
        torch.cuda.empty_cache()
        found["baseline"] = asdict(_baseline(config))
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # plain data


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


def _ours(config: TrainBenchmarkConfig) -> TrainResult:
    if torch.cuda.is_available():
        gc.collect()  # free what an earlier measurement in this process left behind
        torch.cuda.reset_peak_memory_stats()
    stage_class = STAGE_MODULES[config.stage]
    counts, tasks = config.micro_batch, STAGES[config.stage].tasks
    device = take_gpu() if config.hardware.accelerator == "gpu" else torch.device("cpu")
    with device:
        model = OmniMamba(config.model)
    initialise(model, 0)
    model.compute = COMPUTE[config.precision]
    model.backbone.recompute = config.hardware.recompute
    count = config.warmup + config.steps + 1
    optim = OptimConfig(lr=config.lr)
    stage = stage_class(model, StageConfig(name=config.stage), optim, max_steps=10 * count, seed=0)
    batch = synthetic_batch(config.model, counts, tasks)
    steps = _Steps(device)
    trainer = pl.Trainer(
        accelerator=config.hardware.accelerator,
        devices=config.hardware.devices,
        num_nodes=config.hardware.nodes,
        strategy=build_strategy(config.hardware),
        deterministic=config.deterministic or None,
        max_steps=count,
        gradient_clip_val=1.0,
        callbacks=[steps],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(stage, DataLoader(_Repeated(batch, count * trainer.world_size), batch_size=None))
    seconds = statistics.median(steps.clock.seconds()[config.warmup :])
    tokens = counts.positions(config.model, tasks)
    return TrainResult(
        seconds_per_step=seconds,
        tokens_per_second=tokens * trainer.world_size / seconds,
        peak_gib=_peak_gib(config.hardware),
        tflops=model_flops(stage, batch, tokens) / seconds / 1e12,
        **_first_and_last(steps.losses, config.lr),
    )


def _baseline(config: TrainBenchmarkConfig) -> TrainResult:
    """Measure one MambaLMHeadModel with the larger vocabulary; the tasks run one after the other, as published."""
    torch.cuda.reset_peak_memory_stats()
    model = kernels.language_model(config.model)
    if config.stage != "unified_finetune":  # freeze what our stage freezes
        for name, parameter in model.named_parameters():
            parameter.requires_grad = ".layers." not in name
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config.lr, fused=True)
    tasks = STAGES[config.stage].tasks
    ids = {
        task: torch.randint(
            0, config.model.image_vocab, (config.micro_batch.of(task), config.model.length(task))
        ).cuda()
        for task in tasks
    }
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = sum((_next_token_loss(model, each) for each in ids.values()), torch.zeros((), device="cuda"))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())

    seconds = statistics.median(timed(step, torch.device("cuda"), warmup=config.warmup, repeats=config.steps))
    tokens = config.micro_batch.positions(config.model, tasks)
    return TrainResult(
        seconds_per_step=seconds,
        tokens_per_second=tokens / seconds,
        peak_gib=_peak_gib(config.hardware),
        **_first_and_last(losses, config.lr),
    )


def _next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _peak_gib(config: HardwareConfig) -> float | None:
    return torch.cuda.max_memory_allocated() / GIB if config.accelerator == "gpu" else None


def _first_and_last(losses: list[Tensor], lr: float) -> dict[str, float]:
    first, last = float(losses[0]), float(losses[-1])
    if not math.isfinite(last):
        raise ValueError(f"the loss is {last} after {len(losses)} steps with lr={lr:g}; choose a smaller lr")
    return {"first_loss": first, "last_loss": last}


def _device_name(config: HardwareConfig) -> str:
    return torch.cuda.get_device_name() if config.accelerator == "gpu" else "CPU"
