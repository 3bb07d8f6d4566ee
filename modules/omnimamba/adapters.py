"""Task LoRA: one low-rank adapter per task on a linear layer, each applied to its own task's positions.

Every forward pass computes both adapters in a fixed order, even for a task without positions. So each adapter gets its
gradient under accumulation, checkpointing, DDP and every ZeRO level. Switching between adapters would not guarantee
that (docs/decisions/0003-own-lora-layer.md).

Shapes: B batch, L length, D input, O output, R rank of both adapters together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba.config import TASKS, LoraConfig, Task

Segments = tuple[int, int]
"""Number of positions of each task along a row, in the order of `TASKS`; together they cover the row."""


def segments_of(task: Task, length: int) -> Segments:
    """Segments of a row that holds ``length`` positions of one task."""
    return (length, 0) if task == "mmu" else (0, length)


class TaskLoraLinear(nn.Linear):
    """A linear layer without bias plus one adapter per task; with ``lora=None``, only the linear layer.

    Adapter weights have peft's names (``lora_A.<task>.weight``), so they can be saved as peft adapters.
    """

    def __init__(self, in_features: int, out_features: int, lora: LoraConfig | None) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.lora = lora
        if lora is not None:
            self.lora_A = nn.ModuleDict({task: nn.Linear(in_features, lora.rank, bias=False) for task in TASKS})
            self.lora_B = nn.ModuleDict({task: nn.Linear(lora.rank, out_features, bias=False) for task in TASKS})

    def forward(self, x_BLD: Tensor, segments: Segments) -> Tensor:  # type: ignore[override]
        """(B, L, D) to (B, L, O); ``segments`` says which positions belong to which task."""
        y_BLO = F.linear(x_BLD, self.weight)
        if self.lora is None:
            return y_BLO
        rank, pieces = self.lora.rank, []
        x_BLD = F.dropout(x_BLD, self.lora.dropout, self.training)
        # each task's low-rank values are in separate columns, so that one product adds both
        for number, piece in enumerate(torch.split(x_BLD, list(segments), dim=1)):
            low = self.lora.scale * self.lora_A[TASKS[number]](piece)
            pieces.append(F.pad(low, (0, rank) if number == 0 else (rank, 0)))
        weight_OR = torch.cat([self._weight_B(task) for task in TASKS], dim=1)
        low_BLR = torch.cat(pieces, dim=1)
        # in place: `addmm` would first copy y, as large as all activations of a layer; autocast does not cast here
        y_BLO.flatten(0, 1).addmm_(low_BLR.flatten(0, 1), weight_OR.T.to(low_BLR.dtype))
        return y_BLO

    def _weight_B(self, task: Task) -> Tensor:
        weight = self.lora_B[task].weight
        assert isinstance(weight, Tensor)
        return weight

    @torch.no_grad()
    def merged(self, task: Task) -> Tensor:
        """The weight with ``task``'s adapter merged in, (out, in)."""
        if self.lora is None:
            return self.weight.detach().clone()
        weight_A = self.lora_A[task].weight
        assert isinstance(weight_A, Tensor)
        return self.weight + self.lora.scale * (self._weight_B(task) @ weight_A)
