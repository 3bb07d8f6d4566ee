"""Estimates how much memory a run will need on each GPU, before it starts.

The estimate comes from the configuration: what the strategy keeps for each parameter, and what the forward pass keeps
for the backward pass. docs/experiments.md compares it with measured peaks.

Shapes: D d_model, E d_inner, N state size, H heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from modules.files import GIB
from modules.omnimamba.backbone import Recompute
from modules.omnimamba.config import TASKS, ModelConfig, VitConfig
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.row_mixer import serves
from modules.stages import STAGES
from modules.trainable import set_trainable
from pipelines.run.config import RunConfig
from pipelines.run.hardware import HardwareConfig, kernel_problems

FULL, HALF = 4, 2
"""Bytes of a number in float32 and in bf16."""
LOGIT = 10
"""Peak bytes per logit: the logit in bf16, its log-softmax and the gradient of that in float32."""
WORKSPACE = 1.0 * GIB
"""Temporary memory of kernels, besides the gradients inside a block."""
CONTEXT = 1.0 * GIB
"""Memory of CUDA and its libraries, besides torch's own."""
SLACK = 1.05
"""Factor for the fragmentation of torch's memory."""
ANSWER_SHARE = 1 / 3
"""Share of an MMU text that has labels, the average of the mixes."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU: parts by name, in the order they are printed."""

    parts: dict[str, float]

    @property
    def peak(self) -> float:
        """Peak bytes of all tensors."""
        return sum(self.parts.values())

    @property
    def needed(self) -> float:
        """Bytes that the GPU should have."""
        return self.peak * SLACK + CONTEXT

    def lines(self) -> list[str]:
        """The estimate as text."""
        rows = [f"{name:<44}{size / GIB:8.1f} GiB" for name, size in self.parts.items() if size >= GIB / 20]
        return [*rows, f"{'peak of all tensors':<44}{self.peak / GIB:8.1f} GiB"]


def estimate_memory(config: RunConfig) -> MemoryEstimate:
    """Estimate what a training step of ``config`` needs on each GPU."""
    model, hardware = config.model, config.hardware
    stage, built = STAGES[config.stage.name], planned_model(config)
    tasks, counts = stage.tasks, config.data.micro_batch
    mmu, t2i = (counts.of(task) if task in tasks else 0 for task in TASKS)
    number = HALF if config.trainer.precision == "bf16" else FULL
    positions = counts.positions(model, tasks)
    layer = positions * _kept_by_a_layer(built, hardware, number)
    block = WORKSPACE + positions * number * (_width(model) + 3 * model.d_inner)
    kept = model.n_layer * layer
    if hardware.recompute == "block":
        kept = model.n_layer * positions * model.d_model * (FULL + number)
        block += layer  # recomputed, for one block at a time
    parts = _kept_for_parameters(built, config)
    if hardware.strategy != "ddp":
        from modules.zero import BUCKET  # brings Lightning along

        block += FULL * BUCKET * (1 if hardware.strategy == "zero3" else 2)  # only in the backward pass
    accumulation = config.data.accumulation(tasks, hardware.ranks)
    if hardware.strategy in ("zero1", "zero2") and accumulation == 1:
        # freed after the previous step, they are allocated again while activations are freed
        parts["gradients"] = max(0.0, parts["gradients"] - kept)
    labels = {"mmu": mmu * model.mmu_text_length * ANSWER_SHARE, "t2i": t2i * model.image_tokens}
    shared = model.vocabularies == "shared"
    rows = {
        "mmu": len(built.text_embedding.weight),
        "t2i": len(built.text_embedding.weight) if shared else model.image_vocab,
    }
    logits = sum(labels[task] * rows[task] * (LOGIT if number == HALF else 2 * FULL) for task in tasks)
    return MemoryEstimate(
        {
            **parts,
            "vision encoder": _vision(model, mmu) if mmu else 0.0,
            "activations of the blocks": kept,
            "activations of projector and image MLP": _embedders(model, mmu, t2i, number),
            "loss, or one block's backward, the larger": max(logits, block),
        }
    )


def planned_model(config: RunConfig) -> OmniMamba:
    """The model on the meta device, with ``requires_grad`` set as in the stage."""
    stage = STAGES[config.stage.name]
    with torch.device("meta"):
        built = OmniMamba(config.model)
    set_trainable(built, stage.trainable, also_train=config.stage.also_train, freeze=config.stage.freeze)
    return built


def ways_out(config: RunConfig) -> dict[str, MemoryEstimate]:
    """Estimates for overrides that would need less memory, without changing what is trained."""
    hardware, micro = config.hardware, config.data.micro_batch
    ranks = hardware.ranks
    found: dict[str, RunConfig] = {}
    levels: tuple[Recompute, ...] = ("projection", "block")
    for level in levels if hardware.recompute == "none" else levels[1:]:
        changed = replace(hardware, recompute=level)
        served = level == "block" or hardware.accelerator == "gpu"
        if served and not kernel_problems(changed, config.model, config.trainer.precision):
            found[f"hardware.recompute={level}"] = replace(config, hardware=changed)
    if ranks > 1:
        for strategy in ("zero2", "zero3"):
            if strategy > hardware.strategy:
                found[f"hardware.strategy={strategy}"] = replace(config, hardware=replace(hardware, strategy=strategy))
    tasks = STAGES[config.stage.name].tasks
    if all(micro.of(task) % 2 == 0 for task in tasks):
        half = replace(micro, **{task: micro.of(task) // 2 for task in tasks})
        total = config.data.global_batch or replace(micro, **{task: micro.of(task) * ranks for task in TASKS})
        words = ",".join(f"{task}: {half.of(task)}" for task in tasks)
        totals = ",".join(f"{task}: {total.of(task)}" for task in tasks)
        found[f'"data.micro_batch={{{words}}}" "data.global_batch={{{totals}}}"'] = replace(
            config, data=replace(config.data, micro_batch=half, global_batch=total)
        )
    peak = estimate_memory(config).peak
    estimates = {words: estimate_memory(changed) for words, changed in found.items()}
    return {words: estimate for words, estimate in estimates.items() if estimate.peak < peak}


def _kept_for_parameters(model: OmniMamba, config: RunConfig) -> dict[str, float]:
    hardware = config.hardware
    ranks = hardware.ranks
    sizes = [(p.numel(), p.requires_grad, p.ndim > 1) for name, p in model.named_parameters()]
    total = sum(size for size, _, _ in sizes)
    trained = sum(size for size, on, _ in sizes if on)
    level = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}[hardware.strategy]
    parts = {
        "weights, float32": FULL * total / (ranks if level == 3 else 1),
        "gradients": FULL * trained / (ranks if level >= 2 else 1),
        "optimizer: moments": 2 * FULL * trained / (ranks if level else 1),
        "optimizer: its own copy of the weights": FULL * trained / ranks if level else 0.0,
    }
    if config.trainer.precision == "bf16":
        parts["weights, bf16 for the backward pass"] = HALF * sum(_cast_weights(model, config))
    return parts


def _cast_weights(model: OmniMamba, config: RunConfig) -> Iterator[float]:
    """Sizes of the matrices whose copies in bf16 autocast keeps for the backward pass; fused functions cast again."""
    hardware, tasks = config.hardware, STAGES[config.stage.name].tasks
    row = config.data.micro_batch.lengths(config.model, tasks)
    gpu = torch.device(hardware.accelerator.replace("gpu", "cuda"))
    ours = serves(row, config.model, hardware.scan, torch.bfloat16, gpu)
    for name, parameter in model.named_parameters():
        fused = (".in_proj." in name and _fuses(config.model, hardware)) or (".out_proj." in name and ours)
        if parameter.ndim > 1 and not fused:
            blocks = len(model.backbone.layers) if hardware.recompute == "block" else 1
            yield parameter.numel() / blocks


def _kept_by_a_layer(model: OmniMamba, hardware: HardwareConfig, number: int) -> float:
    """Bytes that a block keeps per position for its backward pass."""
    config, block = model.config, model.backbone.layers[0]
    assert isinstance(block, nn.Module)
    trained = {name for name, parameter in block.named_parameters() if parameter.requires_grad}
    # projections, output of the scan, residual
    projected = 0 if hardware.recompute == "projection" else _width(config)
    kept = number * (projected + config.d_inner) + FULL * config.d_model
    if _fuses(config, hardware):
        return kept + number * (config.d_model + len(TASKS) * config.adapters.rank)  # its input, low-rank values beside
    if "mixer.in_proj.weight" in trained:
        kept += number * config.d_model  # its input
    if any("lora_A" in name for name in trained):
        kept += number * config.d_model + (config.d_model if config.adapters.dropout else 0)  # dropped input, its mask
    return kept


def _fuses(model: ModelConfig, hardware: HardwareConfig) -> bool:
    return hardware.projection == "fused" and model.lora == "task" and model.d_model % 4 == 0


def _width(config: ModelConfig) -> int:
    """Number of columns of the input projection."""
    return 2 * config.d_inner + 2 * config.d_state + config.n_heads


def _embedders(config: ModelConfig, mmu: int, t2i: int, number: int) -> float:
    """Bytes of the projector and the image MLP: their inputs, and both sides of each activation."""
    projector = config.vision.width + 2 * config.projector_hidden + 2 * config.d_model
    image = config.d_model + 2 * config.image_mlp_hidden + 2 * config.d_model
    return number * (mmu * config.vision.patches * projector + t2i * config.image_tokens * image)


def _vision(config: ModelConfig, images: int) -> float:
    """Bytes of the ViTs' weights, and of the widest layer of the larger ViT for one chunk of images."""
    if config.vision.kind != "dino_siglip":
        return 0.0
    number = HALF if config.vision.dtype == "bfloat16" else FULL
    together = min(images, config.vision.chunk or images)
    vits: tuple[VitConfig, ...] = (config.vision.dino, config.vision.siglip)
    weights = sum((vit.depth - 1) * vit.width * (4 * vit.width + 2 * vit.mlp_hidden) for vit in vits)
    widest = max(4 * vit.width + 2 * vit.mlp_hidden for vit in vits)
    return number * (weights + together * config.vision.patches * widest)
