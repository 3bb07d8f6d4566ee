"""Task LoRA: one low-rank adapter per task on a linear layer, each applied to its own task's positions.

Every forward pass computes both adapters in a fixed order, even for a task without positions. So each adapter gets its
gradient under accumulation, checkpointing, DDP and every ZeRO level. Switching between adapters would not guarantee
that (docs/decisions/0003-own-lora-layer.md).

Shapes: B batch, L length, R = B * L positions, D input, O output, K rank of both adapters together.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba.config import TASKS, LoraConfig, Task
from modules.omnimamba.projection import Pair, project

Projection = Literal["fused", "plain"]
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
        self.fused = True
        """Whether training rows on a GPU take `projection.project`, which computes the same in fewer steps."""
        if lora is not None:
            self.lora_A = nn.ModuleDict({task: nn.Linear(in_features, lora.rank, bias=False) for task in TASKS})
            self.lora_B = nn.ModuleDict({task: nn.Linear(lora.rank, out_features, bias=False) for task in TASKS})

    def forward(self, x_BLD: Tensor, segments: Segments) -> Tensor:  # type: ignore[override]
        """(B, L, D) to (B, L, O); ``segments`` says which positions belong to which task."""
        if self.lora is None:
            return F.linear(x_BLD, self.weight)
        if self.fused and x_BLD.is_cuda and len(x_BLD) == 1 and self.in_features % 4 == 0 and torch.is_grad_enabled():
            return self._project(x_BLD.squeeze(0), self.lora, segments).unsqueeze(0)
        y_RO = F.linear(x_BLD.flatten(0, 1), self.weight)
        rank, pieces = self.lora.rank, []
        dropped_BLD = F.dropout(x_BLD, self.lora.dropout, self.training)
        # each task's low-rank values are in separate columns, so that one product adds both
        for number, piece in enumerate(torch.split(dropped_BLD, list(segments), dim=1)):
            low = self.lora.scale * self.lora_A[TASKS[number]](piece)
            pieces.append(F.pad(low, (0, rank) if number == 0 else (rank, 0)))
        weight_OK = torch.cat(self._matrices(self.lora_B), dim=1)
        low_RK = torch.cat(pieces, dim=1).flatten(0, 1)
        # in place: `addmm` would first copy y, which is larger than all else that a layer keeps. Autocast does not cast
        # here, and y must not be a view, whose gradient would be copied
        y_RO.addmm_(low_RK, weight_OK.T.to(low_RK.dtype))
        return y_RO.view(*x_BLD.shape[:2], -1)

    def _project(self, x_RD: Tensor, lora: LoraConfig, segments: Segments) -> Tensor:
        A, B = self._matrices(self.lora_A), self._matrices(self.lora_B)
        return project(x_RD, self.weight, A, B, segments, lora, training=self.training)

    @staticmethod
    def _matrices(of: nn.ModuleDict) -> Pair:
        mmu, t2i = (of[task].weight for task in TASKS)
        assert isinstance(mmu, Tensor)
        assert isinstance(t2i, Tensor)
        return mmu, t2i

    @torch.no_grad()
    def merged(self, task: Task) -> Tensor:
        """The weight with ``task``'s adapter merged in, (out, in)."""
        if self.lora is None:
            return self.weight.detach().clone()
        A, B = (self._matrices(each)[TASKS.index(task)] for each in (self.lora_A, self.lora_B))
        return self.weight + self.lora.scale * (B @ A)
