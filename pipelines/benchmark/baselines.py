"""What the benchmark of training compares with: a loop like the published one, and mamba_ssm's own model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba import kernels
from modules.omnimamba.adapters import Segments, TaskLoraLinear, segments_of
from modules.omnimamba.backbone import Block
from modules.omnimamba.config import Task
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import IGNORE, OmniMamba
from modules.stages import STAGES
from modules.trainable import set_trainable

if TYPE_CHECKING:
    from pipelines.benchmark.train import TrainBenchmarkConfig


def mamba_ssm_step(config: "TrainBenchmarkConfig") -> Callable[[], Tensor]:
    """A training step of MambaLMHeadModel with the larger vocabulary; the tasks run one after the other."""
    model = kernels.language_model(config.model)
    if config.stage != "unified_finetune":  # freeze what our stage freezes
        for name, parameter in model.named_parameters():
            parameter.requires_grad = ".layers." not in name
    ids = [
        torch.randint(0, config.model.image_vocab, (config.micro_batch.of(task), config.model.length(task))).cuda()
        for task in STAGES[config.stage].tasks
    ]

    def losses() -> Tensor:
        return torch.stack([_cross_entropy(model(each).logits[:, :-1], each[:, 1:]) for each in ids]).sum()

    return _step(model, losses, config)


def published_step(config: "TrainBenchmarkConfig", batch: dict[str, Any], device: torch.device) -> Callable[[], Tensor]:
    """A training step of our model as the published code does it, from the paper and from what it is known to compute.

    Each task has a forward pass of its own, over a batch of padded sequences. The adapter is a product of its own.
    Logits are computed at every position. Weights are in float32 under autocast. The kernels are mamba_ssm's.
    """
    with device:
        model = OmniMamba(config.model)
    initialise(model, 0, device)
    set_trainable(model, STAGES[config.stage].trainable)
    for block in model.backbone.layers:
        assert isinstance(block, Block)
        block.mixer.in_proj = _SeparateProducts(block.mixer.in_proj)  # type: ignore[assignment]
    tasks = STAGES[config.stage].tasks
    moved = {task: {name: value.to(device) for name, value in batch[task].items()} for task in tasks}

    def losses() -> Tensor:
        found = []
        for task in tasks:
            x_BLD = model.embed(task, moved[task])
            hidden_BLD = model.backbone(x_BLD, segments_of(task, x_BLD.shape[1]))
            logits_BLV = model.head(task, hidden_BLD)
            found.append(_cross_entropy(logits_BLV[:, :-1], _labels(task, moved[task], x_BLD.shape[1])[:, 1:]))
        return torch.stack(found).sum()

    return _step(model, losses, config)


class _SeparateProducts(nn.Module):
    """A `TaskLoraLinear` whose adapter is a product of its own, added to the layer's."""

    def __init__(self, layer: TaskLoraLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BLD: Tensor, segments: Segments) -> Tensor:
        """(B, L, D) to (B, L, O) for sequences of one task."""
        task: Task = "mmu" if segments[0] else "t2i"
        y_BLO = F.linear(x_BLD, self.layer.weight)
        if self.layer.lora is None:
            return y_BLO
        low_BLR = self.layer.lora_A[task](F.dropout(x_BLD, self.layer.lora.dropout, self.training))
        added_BLO: Tensor = self.layer.lora_B[task](low_BLR) * self.layer.lora.scale
        return y_BLO + added_BLO


def _labels(task: Task, batch: dict[str, Tensor], length: int) -> Tensor:
    """The label of every position, (B, L); the loss shifts them by one."""
    own = batch["labels"] if task == "mmu" else batch["image_ids"]
    after = 0 if task == "mmu" else 1  # a picture's closing id
    labels_BL = own.new_full((len(own), length), IGNORE)
    labels_BL[:, length - after - own.shape[1] : length - after] = own
    return labels_BL


def _step(model: nn.Module, losses: Callable[[], Tensor], config: "TrainBenchmarkConfig") -> Callable[[], Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(trained[0].device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = losses()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.detach()

    return step


def _cross_entropy(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    return F.cross_entropy(logits_BLV.flatten(0, 1).float(), labels_BL.flatten(), ignore_index=IGNORE)
