"""Residual, norm, dropout and `projection.project` of a block as one differentiable function, for training rows.

The norm writes its result to where the projection reads it, and is computed again in the backward pass, so a block
keeps neither the norm nor what dropout left of it. Kernels: `triton_norm`.

Shapes: R positions of the row, D d_model, O output, C = D + K columns: the inputs and both adapters' low-rank values.
"""

from typing import Any

import torch
from torch import Tensor

from modules.omnimamba.config import TASKS, LoraConfig
from modules.omnimamba.projection import Pair, beside, low_parts


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

        (rows, width), rank = x_RD.shape, len(A_mmu)
        wide_RC = torch.empty((rows, width + len(TASKS) * rank), dtype=compute, device=x_RD.device)
        total_RD, scale_R, dropped_RD = norm_forward(
            x_RD, residual_RD, norm_weight_D, eps, into_RD=wide_RC[:, :width], dropout=dropout, seed=seed
        )
        low_RK = wide_RC[:, width:].zero_()
        of_tasks = zip(
            low_parts(low_RK, segments, rank), torch.split(dropped_RD, list(segments)), (A_mmu, A_t2i), strict=True
        )
        for low, dropped, A in of_tasks:
            low.copy_(scale * (dropped @ A.T.to(compute)))
        ctx.save_for_backward(total_RD, scale_R, low_RK.clone(), norm_weight_D, weight_OD, A_mmu, A_t2i, B_mmu, B_t2i)
        ctx.given = x_RD.dtype, residual_RD is not None, compute, segments, scale, dropout, seed
        return wide_RC @ beside(weight_OD, (B_mmu, B_t2i), compute).T, total_RD

    @staticmethod
    def backward(ctx: Any, dy_RO: Tensor, dtotal_RD: Tensor | None) -> tuple[Tensor | None, ...]:
        from modules.omnimamba.triton_norm import norm_backward

        total_RD, scale_R, _, norm_weight_D, weight_OD, A_mmu, A_t2i, B_mmu, B_t2i = ctx.saved_tensors
        x_type, has_residual, compute, segments, scale, dropout, seed = ctx.given
        width, rank = weight_OD.shape[1], len(A_mmu)
        wide_RC, dropped_RD = _inputs(ctx)
        dwide_RC = dy_RO @ beside(weight_OD, (B_mmu, B_t2i), compute)
        ddropped_RD = torch.empty(total_RD.shape, dtype=compute, device=total_RD.device)
        of_tasks = zip(
            low_parts(dwide_RC[:, width:], segments, rank),
            torch.split(dropped_RD, list(segments)),
            torch.split(ddropped_RD, list(segments)),
            (A_mmu, A_t2i),
            strict=True,
        )
        dA = []
        for dlow, dropped, ddropped, A in of_tasks:
            scaled = scale * dlow
            dA.append((scaled.T @ dropped).to(A.dtype))
            torch.matmul(scaled, A.to(compute), out=ddropped)
        dtotal_RD = None if dtotal_RD is None else dtotal_RD.contiguous()
        dx_RD, dresidual_RD, dnorm_weight_D = norm_backward(
            total_RD, scale_R, norm_weight_D, dwide_RC[:, :width], ddropped_RD, dtotal_RD,
            x_type=x_type, has_residual=has_residual, dropout=dropout, seed=seed,
        )  # fmt: skip
        if ctx.needs_input_grad[3]:
            dweight_OC = dy_RO.T @ wide_RC
            dweight_OD, dB_OK = dweight_OC[:, :width].to(weight_OD.dtype), dweight_OC[:, width:]
        else:
            dweight_OD, dB_OK = None, dy_RO.T @ wide_RC[:, width:]
        dB = [part.to(B_mmu.dtype) for part in torch.split(dB_OK, rank, dim=1)]
        return dx_RD, dresidual_RD, dnorm_weight_D, dweight_OD, *dA, *dB, *[None] * 6


def _inputs(node: Any) -> tuple[Tensor, Tensor]:
    """The projection's input (R, C) and what dropout left of it (R, D), computed again."""
    from modules.omnimamba.triton_norm import norm_again

    total_RD, scale_R, low_RK, norm_weight_D, *_ = node.saved_tensors
    _, _, compute, _, _, dropout, seed = node.given
    rows, width = total_RD.shape
    wide_RC = torch.empty((rows, width + low_RK.shape[1]), dtype=compute, device=total_RD.device)
    dropped_RD = norm_again(total_RD, scale_R, norm_weight_D, into_RD=wide_RC[:, :width], dropout=dropout, seed=seed)
    wide_RC[:, width:] = low_RK
    return wide_RC, dropped_RD


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
