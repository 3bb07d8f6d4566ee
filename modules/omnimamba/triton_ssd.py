"""The state-space dual scan for rows of many short sequences: the kernels as one differentiable function.

Shapes: R positions of the row, S sequences, K chunks of all sequences, T tiles, H heads, P head size, N state size, Q
chunk size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from modules.omnimamba import triton_ssd_backward as backward
from modules.omnimamba import triton_ssd_forward as forward
from modules.omnimamba.rows import CPU, on_device

CHUNK, SHORT, HEADS_TOGETHER = 64, 16, 16
"""Positions of a chunk and of a short one, and heads whose steps one program computes."""
SMALL = {"num_warps": 4, "num_stages": 1}
"""More programs at a time hide waiting better than loading ahead within one (docs/experiments.md)."""
LARGE = {**SMALL, "maxnreg": 168}
"""For kernels that would take so many registers that only two programs fit where three do."""


@dataclass(frozen=True)
class Group:
    """Chunks of one kind, and the tiles whose rows are theirs, int32."""

    rows: int
    """How many rows of a chunk are computed."""
    chunks: Tensor
    diagonal: Tensor
    """The tiles of a chunk with itself."""
    below: Tensor
    """The tiles with earlier chunks."""


@dataclass(frozen=True)
class Layout:
    """Where the sequences, chunks and tiles of a row are, int32."""

    starts_S2: Tensor
    """The start of each sequence and its first chunk, and after them the end of the row, (2S + 2)."""
    chunks_K5: Tensor
    """Of each chunk: its start, its sequence's end, first chunk, chunk after the last, and first tile."""
    tiles_T2: Tensor
    """The chunks of each tile: of its rows, and of its columns, which are not later."""
    groups: tuple[Group, Group]
    """Chunks of up to 64 positions, and those of up to 16: of 329 positions, the last chunk has nine."""

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return len(self.starts_S2) // 2 - 1

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return len(self.chunks_K5) // 5

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Layout":
        """The layout of a row that holds sequences of these lengths, one after the other."""
        whole, sizes = _tables(tuple(lengths))
        pieces = torch.split(on_device(whole, device), [_padded(size) for size in sizes])
        starts, chunks, tiles, *lists = (piece[:size] for piece, size in zip(pieces, sizes, strict=True))
        return cls(starts, chunks, tiles, (Group(CHUNK, *lists[:3]), Group(SHORT, *lists[3:])))


@lru_cache(maxsize=32)
def _tables(lengths: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """The numbers of a `Layout`, one list after the other, and the length of each list."""
    starts: list[int] = []
    chunks: list[int] = []
    tiles: list[int] = []
    long: tuple[list[int], list[int], list[int]] = ([], [], [])
    short: tuple[list[int], list[int], list[int]] = ([], [], [])
    for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        first, count, first_tile = len(chunks) // 5, -(-length // CHUNK), len(tiles) // 2
        starts += [start, first]
        for later in range(count):
            begin = start + later * CHUNK
            chunks += [begin, start + length, first, first + count, first_tile]
            own, diagonal, below = short if start + length - begin <= SHORT else long
            own.append(first + later)
            below += range(len(tiles) // 2, len(tiles) // 2 + later)
            diagonal.append(len(tiles) // 2 + later)
            tiles += [first + at for earlier in range(later + 1) for at in (later, earlier)]
    starts += [sum(lengths), len(chunks) // 5]
    parts = (starts, chunks, tiles, *long, *short)
    numbers = [number for part in parts for number in (*part, *[0] * (_padded(len(part)) - len(part)))]
    return torch.tensor(numbers, dtype=torch.int32, device=CPU), [len(part) for part in parts]


def _padded(size: int) -> int:
    """Lists begin at multiples of 16 bytes: Triton compiles a kernel anew for pointers that do not."""
    return -(-size // 4) * 4


class _Shared(NamedTuple):
    """What forward and backward pass both need, and each computes."""

    step_HR: Tensor
    log_HR: Tensor
    total_HK: Tensor
    before_HK: Tensor
    products_TQQ: Tensor
    flipped_TQQ: Tensor


def _shared(dt_RH: Tensor, dt_bias_H: Tensor, A_H: Tensor, B_RN: Tensor, C_RN: Tensor, layout: Layout) -> _Shared:
    rows, heads = dt_RH.shape
    chunks, tiles = layout.chunks, len(layout.tiles_T2) // 2
    step_HR, log_HR = torch.empty((2, heads, rows), dtype=torch.float32, device=dt_RH.device)
    total_HK, before_HK = step_HR.new_empty((2, heads, chunks))
    products_TQQ, flipped_TQQ = B_RN.new_empty((2, tiles, CHUNK, CHUNK))
    forward.steps[(layout.sequences, triton.cdiv(heads, HEADS_TOGETHER))](
        dt_RH, dt_bias_H, A_H, layout.starts_S2, step_HR, log_HR, total_HK, before_HK,
        dt_RH.stride(0), rows, chunks, heads, Q=CHUNK, G=HEADS_TOGETHER,
    )  # fmt: skip
    forward.products[(tiles,)](
        B_RN, C_RN, layout.chunks_K5, layout.tiles_T2, products_TQQ, flipped_TQQ, B_RN.stride(0), C_RN.stride(0),
        N=B_RN.shape[1], Q=CHUNK,
    )  # fmt: skip
    return _Shared(step_HR, log_HR, total_HK, before_HK, products_TQQ, flipped_TQQ)


def scan_forward(
    layout: Layout,
    x_RHP: Tensor,
    dt_RH: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    B_RN: Tensor,
    C_RN: Tensor,
    D_H: Tensor,
) -> Tensor:
    """Outputs (R, H, P), without a graph; see `scan`."""
    rows, heads, size = x_RHP.shape
    step_HR, log_HR, total_HK, _, products_TQQ, _ = _shared(dt_RH, dt_bias_H, A_H, B_RN, C_RN, layout)
    y_RHP = torch.empty((rows, heads, size), dtype=x_RHP.dtype, device=x_RHP.device)
    for group in layout.groups:
        if len(group.chunks):
            forward.forward[(triton.cdiv(heads, 2), len(group.chunks))](
                x_RHP, D_H, step_HR, log_HR, total_HK, products_TQQ, layout.chunks_K5, group.chunks, y_RHP,
                x_RHP.stride(0), rows, layout.chunks, heads, P=size, M=group.rows, Q=CHUNK, **LARGE,
            )  # fmt: skip
    return y_RHP


def _backward_products(
    x_RHP: Tensor,
    dy_RHP: Tensor,
    step_HR: Tensor,
    log_HR: Tensor,
    before_HK: Tensor,
    products_TQQ: Tensor,
    within_HR: Tensor,
    layout: Layout,
) -> Tensor:
    """Gradients of the tiles of C . B, (T, Q, Q); fills ``within``."""
    rows, heads, size = x_RHP.shape
    dproducts_TQQ = torch.empty_like(products_TQQ)
    for group in layout.groups:
        for which, diagonal, launch in ((group.diagonal, True, LARGE), (group.below, False, SMALL)):
            if len(which):
                backward.backward_products[(len(which),)](
                    x_RHP, dy_RHP, step_HR, log_HR, before_HK, products_TQQ, layout.chunks_K5, layout.tiles_T2, which,
                    dproducts_TQQ, within_HR, x_RHP.stride(0), rows, layout.chunks, heads,
                    P=size, M=group.rows, Q=CHUNK, DIAGONAL=diagonal, **launch,
                )  # fmt: skip
    return dproducts_TQQ


class ScanGradients(NamedTuple):
    """Gradients of `scan`'s inputs. They may be parts of wider rows, as the inputs may."""

    x_RHP: Tensor
    dt_RH: Tensor
    dt_bias_H: Tensor
    A_H: Tensor
    B_RN: Tensor
    C_RN: Tensor
    D_H: Tensor


def scan_backward(
    layout: Layout,
    into: tuple[Tensor, Tensor, Tensor],
    dy_RHP: Tensor,
    x_RHP: Tensor,
    dt_RH: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    B_RN: Tensor,
    C_RN: Tensor,
    D_H: Tensor,
) -> ScanGradients:
    """Gradients for ``dy`` (R, H, P), contiguous. Those of x, B and C are written to ``into``, the others float32."""
    rows, heads, size = x_RHP.shape
    chunks, tables = layout.chunks, layout.chunks_K5
    step_HR, log_HR, total_HK, before_HK, products, flipped = _shared(dt_RH, dt_bias_H, A_H, B_RN, C_RN, layout)
    dx_RHP, dB_RN, dC_RN = into
    within_HR, earlier_HR, after_HR, dstep_HR = log_HR.new_empty((4, heads, rows))
    passing_TH, dD_KH = log_HR.new_empty((len(products), heads)), log_HR.new_empty((chunks, heads))
    dA_SH, ddt_RH = log_HR.new_empty((layout.sequences, heads)), log_HR.new_empty((rows, heads))
    shape = (rows, chunks, heads)
    for group in layout.groups:
        size_of = {"P": size, "M": group.rows, "Q": CHUNK}
        if len(group.chunks):
            backward.backward_x[(heads, len(group.chunks))](
                x_RHP, dy_RHP, D_H, step_HR, log_HR, total_HK, before_HK, flipped, tables, group.chunks,
                dx_RHP, after_HR, passing_TH, dstep_HR, dD_KH, x_RHP.stride(0), dx_RHP.stride(0), *shape,
                **size_of, SHORT=SHORT, **LARGE,
            )  # fmt: skip
            backward.backward_earlier[(triton.cdiv(heads, 2), len(group.chunks))](
                x_RHP, dy_RHP, step_HR, log_HR, total_HK, products, tables, group.chunks, earlier_HR,
                x_RHP.stride(0), *shape, **size_of, **SMALL,
            )  # fmt: skip
    dproducts = _backward_products(x_RHP, dy_RHP, step_HR, log_HR, before_HK, products, within_HR, layout)
    backward.backward_steps[(layout.sequences, triton.cdiv(heads, HEADS_TOGETHER))](
        dt_RH, dt_bias_H, A_H, layout.starts_S2, tables, step_HR, within_HR, earlier_HR, after_HR, passing_TH,
        dstep_HR, ddt_RH, dA_SH, dt_RH.stride(0), rows, heads, Q=CHUNK, G=HEADS_TOGETHER,
    )  # fmt: skip
    backward.backward_bc[(chunks,)](
        B_RN, C_RN, tables, dproducts, dB_RN, dC_RN,
        B_RN.stride(0), C_RN.stride(0), dB_RN.stride(0), dC_RN.stride(0), N=B_RN.shape[1], Q=CHUNK,
    )  # fmt: skip
    return ScanGradients(dx_RHP, ddt_RH, ddt_RH.sum(0), dA_SH.sum(0), dB_RN, dC_RN, dD_KH.sum(0))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.layout = layout
        return scan_forward(layout, *inputs)

    @staticmethod
    def backward(ctx: Any, dy_RHP: Tensor) -> tuple[Tensor | None, ...]:
        inputs: tuple[Tensor, ...] = ctx.saved_tensors
        dx, dB, dC = (torch.empty(inputs[n].shape, dtype=inputs[n].dtype, device=dy_RHP.device) for n in (0, 4, 5))
        found = scan_backward(ctx.layout, (dx, dB, dC), dy_RHP.contiguous(), *inputs)
        return None, *(gradient.to(of.dtype) for gradient, of in zip(found, inputs, strict=True))


def scan(
    x_RHP: Tensor,
    dt_RH: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    B_RN: Tensor,
    C_RN: Tensor,
    D_H: Tensor,
    layout: Layout,
) -> Tensor:
    """Outputs (R, H, P) of the scan with softplus(dt + dt_bias), and ``D x`` added, for every sequence of a row.

    The last dimension of ``x``, ``dt``, ``B`` and ``C`` is contiguous, and so are the heads of ``x``. P and N are
    powers of two from 16 on.
    """
    y_RHP: Tensor = _Scan.apply(layout, x_RHP, dt_RH, dt_bias_H, A_H, B_RN, C_RN, D_H)  # type: ignore[no-untyped-call]
    return y_RHP
