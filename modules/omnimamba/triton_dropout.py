"""Dropout that keeps no mask, in Triton: a counter-based generator draws the same mask for the same seed."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["seed"])
def _dropout(  # type: ignore[no-untyped-def]
    x_ptr, added_ptr, out_ptr, seed, share, x_stride, added_stride, quarter, BLOCK: tl.constexpr, ADD: tl.constexpr
):
    """One row. A draw gives four numbers, for one column of each quarter of the row."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside, at = column < quarter, row.to(tl.int64)
    draws = tl.rand4x(seed, row * quarter + column)
    for part in tl.static_range(4):
        place = part * quarter + column
        x = tl.load(x_ptr + at * x_stride + place, mask=inside, other=0.0).to(tl.float32)
        y = tl.where(draws[part] >= share, x / (1.0 - share), 0.0)
        if ADD:
            y += tl.load(added_ptr + at * added_stride + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + at * (4 * quarter) + place, y.to(out_ptr.dtype.element_ty), mask=inside)


def dropped(x_RD: Tensor, share: float, seed: int, added_RD: Tensor | None = None) -> Tensor:
    """``x`` with a ``share`` of its elements left out and the others made larger, plus ``added``, (R, D).

    D is a multiple of 4. The last dimension of ``x`` and ``added`` is contiguous.
    """
    rows, width = x_RD.shape
    assert width % 4 == 0
    assert x_RD.stride(1) == 1
    out_RD = torch.empty((rows, width), dtype=x_RD.dtype, device=x_RD.device)
    added = x_RD if added_RD is None else added_RD
    _dropout[(rows,)](
        x_RD, added, out_RD, seed, share, x_RD.stride(0), added.stride(0), width // 4,
        BLOCK=triton.next_power_of_2(width // 4), ADD=added_RD is not None,
    )  # fmt: skip
    return out_RD
