"""A linear layer with both tasks' adapters as one differentiable function, for training rows on a GPU.

`TaskLoraLinear` computes the layer, then adds the adapters' product, which reads and writes all of the output again.
Here the low-rank values stand beside the inputs and the adapters' matrices B beside the weight, so that one product
computes both, and one each their gradients. The dropout mask is not kept: a counter-based generator draws it again.

Shapes: R positions of the row, D input, O output, K columns for the low-rank values of both adapters, C = D + K.
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
        wide_RC = torch.empty((rows, width + low_columns(B_mmu)), dtype=x_RD.dtype, device=x_RD.device)
        wide_RC[:, :width] = x_RD
        write_low(wide_RC[:, width:], _dropped(x_RD, dropout, seed), (A_mmu, A_t2i), segments, scale)
        ctx.save_for_backward(wide_RC, weight_OD, A_mmu, A_t2i, B_mmu, B_t2i)
        ctx.given = segments, scale, dropout, seed
        return wide_RC @ beside(weight_OD, (B_mmu, B_t2i), x_RD.dtype).T

    @staticmethod
    def backward(ctx: Any, dy_RO: Tensor) -> tuple[Tensor | None, ...]:
        wide_RC, weight_OD, A_mmu, A_t2i, B_mmu, B_t2i = ctx.saved_tensors
        segments, scale, dropout, seed = ctx.given
        width = weight_OD.shape[1]
        dwide_RC = dy_RO @ beside(weight_OD, (B_mmu, B_t2i), dy_RO.dtype)
        dropped_RD = _dropped(wide_RC[:, :width], dropout, seed)
        ddropped_RD, dA = low_gradients(dwide_RC[:, width:], dropped_RD, (A_mmu, A_t2i), segments, scale)
        dx_RD = _dropped(ddropped_RD, dropout, seed, added=dwide_RC[:, :width])
        dweights = beside_gradients(dy_RO, wide_RC, weight_OD, B_mmu, trained=ctx.needs_input_grad[1])
        return dx_RD, dweights[0], *dA, *dweights[1], None, None, None, None


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
        # a CPU keeps what it always kept; elsewhere, more would be kept than was foreseen
        assert not (y_RO.is_cuda and y_RO.requires_grad), f"cannot compute {node} again"
        yield
        return

    place = (y_RO.data_ptr(), y_RO.numel())  # not ``y``, which the hook would keep

    def pack(kept: Tensor) -> "Tensor | Again":
        return Again(node, kept.shape) if (kept.data_ptr(), kept.numel()) == place else kept

    with torch.autograd.graph.saved_tensors_hooks(
        pack, lambda kept: kept.compute() if isinstance(kept, Again) else kept
    ):
        yield


@dataclass(frozen=True)
class Again:
    """How to compute an output of `project` again."""

    node: Any
    shape: torch.Size

    def compute(self) -> Tensor:
        """The output, in the shape in which it would have been kept."""
        wide_RC, weight_OD, _, _, B_mmu, B_t2i = self.node.saved_tensors
        y_RO: Tensor = wide_RC @ beside(weight_OD, (B_mmu, B_t2i), wide_RC.dtype).T
        return y_RO.view(self.shape)


def low_columns(B: Tensor) -> int:
    """K: the ranks of both adapters, and zeros up to a multiple of eight, as fast products want it."""
    return -(-len(TASKS) * B.shape[1] // 8) * 8


def write_low(low_RK: Tensor, dropped_RD: Tensor, A: Pair, segments: tuple[int, int], scale: float) -> None:
    """Write each task's low-rank values into its rows and columns, and zeros elsewhere."""
    low_RK.zero_()
    for low, dropped, matrix in zip(
        _of_tasks(low_RK, segments, len(A[0])), torch.split(dropped_RD, list(segments)), A, strict=True
    ):
        low.copy_(scale * (dropped @ matrix.T.to(dropped.dtype)))


def low_gradients(
    dlow_RK: Tensor, dropped_RD: Tensor, A: Pair, segments: tuple[int, int], scale: float
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of ``dropped`` (R, D) and of both A."""
    ddropped_RD, dA = torch.empty_like(dropped_RD), []
    for dlow, dropped, ddropped, matrix in zip(
        _of_tasks(dlow_RK, segments, len(A[0])),
        torch.split(dropped_RD, list(segments)),
        torch.split(ddropped_RD, list(segments)),
        A,
        strict=True,
    ):
        scaled = scale * dlow
        dA.append((scaled.T @ dropped).to(matrix.dtype))
        torch.matmul(scaled, matrix.to(dlow.dtype), out=ddropped)
    return ddropped_RD, dA


def beside(weight_OD: Tensor, B: Pair, dtype: torch.dtype) -> Tensor:
    """The weight and beside it both B, (O, D + K)."""
    width, rank = weight_OD.shape[1], B[0].shape[1]
    whole = torch.empty((len(weight_OD), width + low_columns(B[0])), dtype=dtype, device=weight_OD.device)
    for first, part in ((0, weight_OD), (width, B[0]), (width + rank, B[1])):
        whole[:, first : first + part.shape[1]].copy_(part)  # casts on the way
    whole[:, width + len(B) * rank :].zero_()
    return whole


def beside_gradients(
    dy_RO: Tensor, wide_RC: Tensor, weight_OD: Tensor, B: Tensor, *, trained: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of the weight, None if it is not trained, and of both B."""
    width, rank = weight_OD.shape[1], B.shape[1]
    dweight_OD = None
    if trained:
        whole = dy_RO.T @ wide_RC
        dweight_OD, dB_OK = whole[:, :width].to(weight_OD.dtype), whole[:, width:]
    else:
        dB_OK = dy_RO.T @ wide_RC[:, width:]
    return dweight_OD, [dB_OK[:, first : first + rank].to(B.dtype) for first in (0, rank)]


def _of_tasks(low_RK: Tensor, segments: tuple[int, int], rank: int) -> Pair:
    """Each task's rows and columns of the low-rank values."""
    first = segments[0]
    return low_RK[:first, :rank], low_RK[first:, rank : 2 * rank]


def _dropped(x_RD: Tensor, dropout: float, seed: int, added: Tensor | None = None) -> Tensor:
    """Dropout of ``x``, plus ``added``. The same seed leaves out the same elements."""
    if dropout:
        from modules.omnimamba.triton_dropout import dropped

        return dropped(x_RD, dropout, seed, added)
    return x_RD if added is None else x_RD + added
