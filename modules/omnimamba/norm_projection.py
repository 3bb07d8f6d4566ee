"""Residual, norm, dropout and `projection.project` of a block as one differentiable function, for training rows.

The norm writes its result to where the projection reads it, and is computed again in the backward pass, so a block
keeps neither the norm nor what dropout left of it. Kernels: `triton_norm`.

Shapes: R positions of the row, D d_model, O output, C = D + K columns: the inputs and both adapters' low-rank values.
"""

from typing import Any

import torch
from torch import Tensor

from modules.omnimamba.config import LoraConfig
from modules.omnimamba.projection import (
    Pair,
    beside,
    beside_gradients,
    low_columns,
    low_gradients,
    write_low,
)


class _NormProject(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        residual_RD: Tensor | None,
        norm_weight_D: Tensor,
        weight_OD: Tensor,
        A_mmu: Tensor,
        A_t2i: Tensor,
        B_mmu: Tensor,
        B_t2i: Tensor,
        eps: float,
        compute: torch.dtype,
        segments: tuple[int, int],
        scale: float,
        dropout: float,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        from modules.omnimamba.triton_norm import norm_forward

        rows, width = x_RD.shape
        wide_RC = torch.empty((rows, width + low_columns(B_mmu)), dtype=compute, device=x_RD.device)
        total_RD, scale_R, dropped_RD = norm_forward(
            x_RD, residual_RD, norm_weight_D, eps, into_RD=wide_RC[:, :width], dropout=dropout, seed=seed
        )
        low_RK = wide_RC[:, width:]
        write_low(low_RK, dropped_RD, (A_mmu, A_t2i), segments, scale)
        ctx.save_for_backward(total_RD, scale_R, low_RK.clone(), norm_weight_D, weight_OD, A_mmu, A_t2i, B_mmu, B_t2i)
        ctx.given = x_RD.dtype, residual_RD is not None, compute, segments, scale, dropout, seed
        ctx.set_materialize_grads(False)
        return wide_RC @ beside(weight_OD, (B_mmu, B_t2i), compute).T, total_RD

    @staticmethod
    def backward(ctx: Any, dy_RO: Tensor, dtotal_RD: Tensor | None) -> tuple[Tensor | None, ...]:
        from modules.omnimamba.triton_norm import norm_again, norm_backward

        total_RD, scale_R, low_RK, norm_weight_D, weight_OD, A_mmu, A_t2i, B_mmu, B_t2i = ctx.saved_tensors
        x_type, has_residual, compute, segments, scale, dropout, seed = ctx.given
        width = weight_OD.shape[1]
        wide_RC = torch.empty((len(total_RD), width + low_RK.shape[1]), dtype=compute, device=total_RD.device)
        dropped_RD = norm_again(
            total_RD, scale_R, norm_weight_D, into_RD=wide_RC[:, :width], dropout=dropout, seed=seed
        )
        wide_RC[:, width:] = low_RK
        dwide_RC = dy_RO @ beside(weight_OD, (B_mmu, B_t2i), compute)
        ddropped_RD, dA = low_gradients(dwide_RC[:, width:], dropped_RD, (A_mmu, A_t2i), segments, scale)
        dx_RD, dresidual_RD, dnorm_weight_D = norm_backward(
            total_RD, scale_R, norm_weight_D, dwide_RC[:, :width], ddropped_RD.contiguous(),
            None if dtotal_RD is None else dtotal_RD.contiguous(),
            x_type=x_type, has_residual=has_residual, dropout=dropout, seed=seed,
        )  # fmt: skip
        dweights = beside_gradients(dy_RO, wide_RC, weight_OD, B_mmu, trained=ctx.needs_input_grad[3])
        return dx_RD, dresidual_RD, dnorm_weight_D, dweights[0], *dA, *dweights[1], *[None] * 6


def norm_project(
    x_RD: Tensor,
    residual_RD: Tensor | None,
    norm_weight_D: Tensor,
    weight_OD: Tensor,
    A: Pair,
    B: Pair,
    *,
    eps: float,
    segments: tuple[int, int],
    lora: LoraConfig,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """The projection (R, O) of the norm of ``residual + x``, and that sum in float32, (R, D).

    Under autocast, the norm and the projection have its type, otherwise that of ``x``. The seed of the dropout comes
    from torch's generator of the CPU.
    """
    kind = x_RD.device.type
    compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_RD.dtype
    dropout = lora.dropout if training else 0.0
    seed = int(torch.randint(2**31 - 1, ())) if dropout else 0
    found: tuple[Tensor, Tensor] = _NormProject.apply(  # type: ignore[no-untyped-call]
        x_RD, residual_RD, norm_weight_D, weight_OD, *A, *B, eps, compute, segments, lora.scale, dropout, seed
    )
    return found
