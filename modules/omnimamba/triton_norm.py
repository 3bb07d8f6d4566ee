"""Residual, norm and dropout before a block's input projection, in Triton: one pass each way.

A row is held as four quarters, because a draw of the counter-based generator gives four numbers: the mask is the one
of `triton_dropout`, and is not kept.

Shapes: R positions, D d_model.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 528
"""Programs of the backward pass, four for each of an H100's processors. Each adds up the weight's gradient over its
rows."""


@triton.jit
def _kept(seed, row, share, quarter, part, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 / (1 - share) where dropout keeps an element of the row, 0 elsewhere, (4, BLOCK)."""
    first, second, third, fourth = tl.rand4x(seed, row * quarter + tl.arange(0, BLOCK))
    front = tl.where(part == 0, first[None, :], second[None, :])
    draw = tl.where(part < 2, front, tl.where(part == 2, third[None, :], fourth[None, :]))
    return tl.where(draw >= share, 1.0 / (1.0 - share), 0.0)


@triton.jit(do_not_specialize=["seed"])
def _norm_forward(  # type: ignore[no-untyped-def]
    x_ptr, residual_ptr, weight_ptr, total_ptr, scale_ptr, normed_ptr, dropped_ptr, normed_stride, eps, seed, share,
    quarter, RESIDUAL: tl.constexpr, FIRST: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row. ``FIRST`` writes sum and scale; without it, they are read, and norm and dropout are computed again."""
    row, part, column = tl.program_id(0), tl.arange(0, 4)[:, None], tl.arange(0, BLOCK)[None, :]
    inside, place = (column < quarter) & (part < 4), part * quarter + column
    at = row.to(tl.int64) * (4 * quarter) + place
    if FIRST:
        total = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL:
            total += tl.load(residual_ptr + at, mask=inside, other=0.0)
        scale = 1.0 / tl.sqrt(tl.sum(tl.sum(total * total, 1), 0) / (4 * quarter) + eps)
        tl.store(total_ptr + at, total, mask=inside)
        tl.store(scale_ptr + row, scale)
    else:
        total = tl.load(total_ptr + at, mask=inside, other=0.0)
        scale = tl.load(scale_ptr + row)
    normed = (total * scale * tl.load(weight_ptr + place, mask=inside, other=0.0)).to(normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + row.to(tl.int64) * normed_stride + place, normed, mask=inside)
    if DROP:
        kept = normed.to(tl.float32) * _kept(seed, row, share, quarter, part, BLOCK)
        tl.store(dropped_ptr + at, kept.to(dropped_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seed", "R"])
def _norm_backward(  # type: ignore[no-untyped-def]
    total_ptr, scale_ptr, weight_ptr, dnormed_ptr, ddropped_ptr, dtotal_ptr, dresidual_ptr, dx_ptr, dweight_ptr,
    dnormed_stride, seed, share, quarter, R,
    ADDED: tl.constexpr, RESIDUAL: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every ``PROGRAMS``-th row. ``ADDED``: the sum itself has a gradient too; ``RESIDUAL``: so had its second part."""
    program, part, column = tl.program_id(0), tl.arange(0, 4)[:, None], tl.arange(0, BLOCK)[None, :]
    inside, place = (column < quarter) & (part < 4), part * quarter + column
    width, stride = tl.full((), 4 * quarter, tl.int64), tl.full((), dnormed_stride, tl.int64)
    weight = tl.load(weight_ptr + place, mask=inside, other=0.0)
    dweight = tl.zeros((4, BLOCK), tl.float32)
    for row in range(program, R, tl.num_programs(0)):
        at = row * width + place
        scale = tl.load(scale_ptr + row)
        unit = tl.load(total_ptr + at, mask=inside, other=0.0) * scale
        dnormed = tl.load(dnormed_ptr + row * stride + place, mask=inside, other=0.0).to(tl.float32)
        ddropped = tl.load(ddropped_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if DROP:
            ddropped *= _kept(seed, row, share, quarter, part, BLOCK)
        dnormed += ddropped
        dweight += dnormed * unit
        dunit = dnormed * weight
        dtotal = (dunit - unit * (tl.sum(tl.sum(dunit * unit, 1), 0) / (4 * quarter))) * scale
        if ADDED:
            dtotal += tl.load(dtotal_ptr + at, mask=inside, other=0.0)
        if RESIDUAL:
            tl.store(dresidual_ptr + at, dtotal, mask=inside)
        tl.store(dx_ptr + at, dtotal.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dweight_ptr + program * (4 * quarter) + place, dweight, mask=inside)


def norm_forward(
    x_RD: Tensor,
    residual_RD: Tensor | None,
    weight_D: Tensor,
    eps: float,
    *,
    into_RD: Tensor,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of ``x`` and residual in float32, the norm's scale (R,), and the norm after dropout (R, D).

    The norm itself is written to ``into``, which may be columns of a wider tensor. Without dropout, ``into`` stands for
    the last result. D is a multiple of 4; rows are contiguous.
    """
    assert x_RD.shape[1] % 4 == 0
    assert into_RD.stride(1) == 1
    total_RD = torch.empty(x_RD.shape, dtype=torch.float32, device=x_RD.device)
    scale_R = total_RD.new_empty(len(x_RD))
    dropped_RD = torch.empty(x_RD.shape, dtype=into_RD.dtype, device=x_RD.device) if dropout else into_RD
    residual = total_RD if residual_RD is None else residual_RD
    quarter = x_RD.shape[1] // 4
    _norm_forward[(len(x_RD),)](
        x_RD, residual, weight_D, total_RD, scale_R, into_RD, dropped_RD, into_RD.stride(0), eps, seed, dropout,
        quarter, RESIDUAL=residual_RD is not None, FIRST=True, DROP=dropout > 0, BLOCK=triton.next_power_of_2(quarter),
    )  # fmt: skip
    return total_RD, scale_R, dropped_RD


def norm_again(
    total_RD: Tensor, scale_R: Tensor, weight_D: Tensor, *, into_RD: Tensor, dropout: float, seed: int
) -> Tensor:
    """What `norm_forward` wrote to ``into`` and returned last, from what it returned first."""
    dropped_RD = torch.empty(total_RD.shape, dtype=into_RD.dtype, device=total_RD.device) if dropout else into_RD
    quarter = total_RD.shape[1] // 4
    _norm_forward[(len(total_RD),)](
        total_RD, total_RD, weight_D, total_RD, scale_R, into_RD, dropped_RD, into_RD.stride(0), 0.0, seed, dropout,
        quarter, RESIDUAL=False, FIRST=False, DROP=dropout > 0, BLOCK=triton.next_power_of_2(quarter),
    )  # fmt: skip
    return dropped_RD


def norm_backward(
    total_RD: Tensor,
    scale_R: Tensor,
    weight_D: Tensor,
    dnormed_RD: Tensor,
    ddropped_RD: Tensor,
    dtotal_RD: Tensor | None,
    *,
    x_type: torch.dtype,
    has_residual: bool,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of x, residual (float32; None if there was none) and weight.

    ``dnormed`` may be columns of a wider tensor; ``ddropped`` is the gradient after dropout, and ``dtotal`` of the sum.
    """
    rows, width = total_RD.shape
    programs = min(PROGRAMS, rows)
    dx_RD = torch.empty((rows, width), dtype=x_type, device=total_RD.device)
    dresidual_RD = torch.empty_like(total_RD) if has_residual else None
    dweight_GD = total_RD.new_empty((programs, width))
    _norm_backward[(programs,)](
        total_RD, scale_R, weight_D, dnormed_RD, ddropped_RD, total_RD if dtotal_RD is None else dtotal_RD,
        total_RD if dresidual_RD is None else dresidual_RD, dx_RD, dweight_GD, dnormed_RD.stride(0), seed, dropout,
        width // 4, rows, ADDED=dtotal_RD is not None, RESIDUAL=has_residual, DROP=dropout > 0,
        BLOCK=triton.next_power_of_2(width // 4),
    )  # fmt: skip
    return dx_RD, dresidual_RD, dweight_GD.sum(0)
