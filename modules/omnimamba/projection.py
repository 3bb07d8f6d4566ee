"""A linear layer with both tasks' adapters as one differentiable function, for training rows on a GPU.

`TaskLoraLinear` computes the layer, then adds the adapters' product, which reads and writes all of the output again.
Here the low-rank values stand beside the inputs and the adapters' matrices B beside the weight, so that one product
computes both, and one each their gradients. The dropout mask is not kept: a counter-based generator draws it again.

Shapes: R positions of the row, D input, O output, K rank of both adapters together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modules.omnimamba.config import TASKS, LoraConfig

Pair = tuple[Tensor, Tensor]
"""One tensor of each task, in the order of `TASKS`."""


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        weight_OD: Tensor,
        A_mmu: Tensor,
        A_t2i: Tensor,
        B_mmu: Tensor,
        B_t2i: Tensor,
        segments: tuple[int, int],
        scale: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        rows, width = x_RD.shape
        rank = len(A_mmu)
        wide_RC = x_RD.new_zeros((rows, width + len(TASKS) * rank))
        wide_RC[:, :width] = x_RD
        dropped_RD = _dropped(x_RD, dropout, seed)
        for low, dropped, A in zip(
            low_parts(wide_RC[:, width:], segments, rank),
            torch.split(dropped_RD, list(segments)),
            (A_mmu, A_t2i),
            strict=True,
        ):
            low.copy_(scale * (dropped @ A.T.to(x_RD.dtype)))
        ctx.save_for_backward(wide_RC, weight_OD, A_mmu, A_t2i, B_mmu, B_t2i)
        ctx.given = segments, scale, dropout, seed
        return wide_RC @ beside(weight_OD, (B_mmu, B_t2i), x_RD.dtype).T

    @staticmethod
    def backward(ctx: Any, dy_RO: Tensor) -> tuple[Tensor | None, ...]:
        wide_RC, weight_OD, A_mmu, A_t2i, B_mmu, B_t2i = ctx.saved_tensors
        segments, scale, dropout, seed = ctx.given
        width, rank = weight_OD.shape[1], len(A_mmu)
        dwide_RC = dy_RO @ beside(weight_OD, (B_mmu, B_t2i), dy_RO.dtype)
        dropped_RD = _dropped(wide_RC[:, :width], dropout, seed)
        ddropped_RD = torch.empty_like(dropped_RD)
        dA = []
        for dlow, dropped, ddropped, A in zip(
            low_parts(dwide_RC[:, width:], segments, rank),
            torch.split(dropped_RD, list(segments)),
            torch.split(ddropped_RD, list(segments)),
            (A_mmu, A_t2i),
            strict=True,
        ):
            scaled = scale * dlow
            dA.append((scaled.T @ dropped).to(A.dtype))
            torch.matmul(scaled, A.to(dlow.dtype), out=ddropped)
        dx_RD = _dropped(ddropped_RD, dropout, seed, added=dwide_RC[:, :width])
        if ctx.needs_input_grad[1]:
            dweight_OC = dy_RO.T @ wide_RC
            dweight_OD, dB_OK = dweight_OC[:, :width].to(weight_OD.dtype), dweight_OC[:, width:]
        else:
            dweight_OD, dB_OK = None, dy_RO.T @ wide_RC[:, width:]
        dB = [part.to(B_mmu.dtype) for part in torch.split(dB_OK, rank, dim=1)]
        return dx_RD, dweight_OD, *dA, *dB, None, None, None, None


def project(
    x_RD: Tensor, weight_OD: Tensor, A: Pair, B: Pair, segments: tuple[int, int], lora: LoraConfig, *, training: bool
) -> Tensor:
    """The layer and the adapters of a row whose first ``segments[0]`` positions are MMU's, the others T2I's, (R, O).

    The seed of the dropout comes from torch's generator of the CPU.
    """
    if torch.is_autocast_enabled(x_RD.device.type):  # which casts no inputs of such a function
        x_RD = x_RD.to(torch.get_autocast_dtype(x_RD.device.type))
    dropout = lora.dropout if training else 0.0
    seed = int(torch.randint(2**31 - 1, ())) if dropout else 0
    y_RO: Tensor = _Project.apply(x_RD, weight_OD, *A, *B, segments, lora.scale, dropout, seed)  # type: ignore[no-untyped-call]
    return y_RO


@contextmanager
def recomputed(y_RO: Tensor) -> Iterator[None]:
    """Within it, functions keep for their backward pass how to compute ``y`` again, and not ``y``.

    ``y`` is what `project` returned, or a view of all of it; anything else is kept as usual.
    """
    node = y_RO.grad_fn if y_RO._base is None else y_RO._base.grad_fn
    if getattr(node, "_forward_cls", None) is not _Project:
        yield
        return

    place = (y_RO.data_ptr(), y_RO.numel())  # not ``y``, which the hook would keep

    def pack(kept: Tensor) -> "Tensor | _Again":
        return _Again(node, kept.shape) if (kept.data_ptr(), kept.numel()) == place else kept

    with torch.autograd.graph.saved_tensors_hooks(
        pack, lambda kept: kept.compute() if isinstance(kept, _Again) else kept
    ):
        yield


@dataclass(frozen=True)
class _Again:
    """How to compute an output of `project` again."""

    node: Any
    shape: torch.Size

    def compute(self) -> Tensor:
        wide_RC, weight_OD, _, _, B_mmu, B_t2i = self.node.saved_tensors
        y_RO: Tensor = wide_RC @ beside(weight_OD, (B_mmu, B_t2i), wide_RC.dtype).T
        return y_RO.view(self.shape)


def low_parts(low_RK: Tensor, segments: tuple[int, int], rank: int) -> Pair:
    """Each task's rows and columns of the low-rank values. The others are zero."""
    first = segments[0]
    return low_RK[:first, :rank], low_RK[first:, rank:]


def beside(weight_OD: Tensor, B: Pair, dtype: torch.dtype) -> Tensor:
    """The weight and beside it both B, (O, D + K)."""
    width, rank = weight_OD.shape[1], B[0].shape[1]
    whole = torch.empty((len(weight_OD), width + len(B) * rank), dtype=dtype, device=weight_OD.device)
    parts = torch.split(whole, [width, *[rank] * len(B)], dim=1)
    for into, part in zip(parts, (weight_OD, *B), strict=True):
        into.copy_(part)  # casts on the way
    return whole


def _dropped(x_RD: Tensor, dropout: float, seed: int, added: Tensor | None = None) -> Tensor:
    """Dropout of ``x``, plus ``added``. The same seed leaves out the same elements."""
    if dropout:
        from modules.omnimamba.triton_dropout import dropped

        return dropped(x_RD, dropout, seed, added)
    return x_RD if added is None else x_RD + added
