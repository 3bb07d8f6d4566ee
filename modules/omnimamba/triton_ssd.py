"""The state-space dual scan for rows of many short sequences, forward and backward, in Triton.

mamba_ssm's kernels cut a row into chunks, compute every chunk apart, and pass states from chunk to chunk through
memory, in nine kernels. Here one program follows a sequence with one head from its first chunk to its last, and keeps
the state in registers. A training row has 51 sequences and 64 heads: 3,264 programs, enough for any GPU. `ssd` is the
reference, and explains the recurrence.

Shapes: R positions of the row, S sequences, K chunks of all sequences, H heads, P head size, N state size, Q chunk
size. States are (N, P) here. Every sum has a fixed order, so results are equal to the bit from run to run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK, HEADS_TOGETHER = 64, 16
"""Positions of a chunk, and heads whose gradients of B and C one program adds up."""


@triton.jit
def _dot(a, b):  # type: ignore[no-untyped-def]
    """The product of two tiles, in float32; of float32 tiles without the short cut of TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _log_1_plus(x):  # type: ignore[no-untyped-def]
    """log(1 + x) without the digits that 1 + x loses (Kahan)."""
    rounded = 1.0 + x
    kept = rounded - 1.0
    return tl.where(kept == 0.0, x, tl.log(rounded) * (x / tl.where(kept == 0.0, 1.0, kept)))


@triton.jit
def _decays(dt_ptr, bias_ptr, rate_ptr, rows, inside, head, stride):  # type: ignore[no-untyped-def]
    """Of a chunk: raw dt + bias, dt after softplus (0 outside of the sequence), and the log decay from its start."""
    raw = tl.load(dt_ptr + rows * stride + head, mask=inside, other=0.0).to(tl.float32) + tl.load(bias_ptr + head)
    dt = tl.where(inside, tl.where(raw > 20.0, raw, _log_1_plus(tl.exp(tl.minimum(raw, 20.0)))), 0.0)
    return raw, dt, tl.cumsum(dt * tl.load(rate_ptr + head), 0)


@triton.jit
def _within(log_decay, Q: tl.constexpr):  # type: ignore[no-untyped-def]
    """Decay from position j (column) to position i (row) of a chunk; 0 for later j."""
    q = tl.arange(0, Q)
    return tl.exp(tl.where(q[:, None] >= q[None, :], log_decay[:, None] - log_decay[None, :], float("-inf")))


@triton.jit
def _advanced(state, x, B, dt, log_decay, total):  # type: ignore[no-untyped-def]
    """The state (N, P) after a chunk."""
    weighted = (x * (tl.exp(total - log_decay) * dt)[:, None]).to(x.dtype)
    return state * tl.exp(total) + _dot(tl.trans(B), weighted)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x_ptr, dt_ptr, bias_ptr, rate_ptr, B_ptr, C_ptr, D_ptr, y_ptr, starts_ptr, order_ptr,
    x_stride, dt_stride, B_stride, C_stride, H,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Outputs of one sequence and head."""
    sequence, head = tl.load(order_ptr + tl.program_id(0)), tl.program_id(1)
    first, end = tl.load(starts_ptr + sequence), tl.load(starts_ptr + sequence + 1)
    q, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    state = tl.zeros((N, P), tl.float32)
    for begin in range(first, end, Q):
        rows = (begin + q).to(tl.int64)
        inside = rows < end
        _, dt, log_decay = _decays(dt_ptr, bias_ptr, rate_ptr, rows, inside, head, dt_stride)
        total = tl.sum(dt, 0) * tl.load(rate_ptr + head)
        x = tl.load(x_ptr + rows[:, None] * x_stride + head * P + p[None, :], mask=inside[:, None], other=0.0)
        B = tl.load(B_ptr + rows[:, None] * B_stride + n[None, :], mask=inside[:, None], other=0.0)
        C = tl.load(C_ptr + rows[:, None] * C_stride + n[None, :], mask=inside[:, None], other=0.0)
        mixing = _dot(C, tl.trans(B)) * _within(log_decay, Q) * dt[None, :]
        y = _dot(mixing.to(x.dtype), x)
        y += _dot(C, state.to(x.dtype)) * tl.exp(log_decay)[:, None]
        y += x.to(tl.float32) * tl.load(D_ptr + head)
        place = y_ptr + rows[:, None] * (H * P) + head * P + p[None, :]
        tl.store(place, y.to(x.dtype), mask=inside[:, None])
        state = _advanced(state, x, B, dt, log_decay, total)


@triton.jit
def _backward_x(  # type: ignore[no-untyped-def]
    x_ptr, dt_ptr, bias_ptr, rate_ptr, B_ptr, C_ptr, D_ptr, dy_ptr, starts_ptr, chunks_ptr, order_ptr,
    states_ptr, dstates_ptr, dx_ptr, ddt_ptr, drate_ptr, dD_ptr,
    x_stride, dt_stride, B_stride, C_stride, dx_stride, ddt_stride, H,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Gradients of x, dt, A and D for one sequence and head.

    Also the state before each chunk and the gradient of the state after it, for `_backward_bc`.
    """
    sequence, head = tl.load(order_ptr + tl.program_id(0)), tl.program_id(1)
    first, end = tl.load(starts_ptr + sequence), tl.load(starts_ptr + sequence + 1)
    chunk_0, count = tl.load(chunks_ptr + sequence), tl.cdiv(end - first, Q)
    q, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    rate, D = tl.load(rate_ptr + head), tl.load(D_ptr + head)
    tile = n[:, None] * P + p[None, :]

    # 1. Forward: the state before each chunk.
    state = tl.zeros((N, P), tl.float32)
    for k in range(0, count):
        rows = (first + k * Q + q).to(tl.int64)
        inside = rows < end
        place = ((chunk_0 + k).to(tl.int64) * H + head) * (N * P)
        tl.store(states_ptr + place + tile, state.to(states_ptr.dtype.element_ty))
        _, dt, log_decay = _decays(dt_ptr, bias_ptr, rate_ptr, rows, inside, head, dt_stride)
        x = tl.load(x_ptr + rows[:, None] * x_stride + head * P + p[None, :], mask=inside[:, None], other=0.0)
        B = tl.load(B_ptr + rows[:, None] * B_stride + n[None, :], mask=inside[:, None], other=0.0)
        state = _advanced(state, x, B, dt, log_decay, tl.sum(dt, 0) * rate)

    # 2. Backward: the gradient of the state after each chunk, and of the chunk's inputs.
    dstate = tl.zeros((N, P), tl.float32)
    drate, dD = 0.0, 0.0
    for back in range(0, count):
        k = count - 1 - back
        rows = (first + k * Q + q).to(tl.int64)
        inside = rows < end
        place = ((chunk_0 + k).to(tl.int64) * H + head) * (N * P)
        tl.store(dstates_ptr + place + tile, dstate.to(dstates_ptr.dtype.element_ty))
        raw, dt, log_decay = _decays(dt_ptr, bias_ptr, rate_ptr, rows, inside, head, dt_stride)
        total = tl.sum(dt, 0) * rate
        x = tl.load(x_ptr + rows[:, None] * x_stride + head * P + p[None, :], mask=inside[:, None], other=0.0)
        dy = tl.load(dy_ptr + rows[:, None] * (H * P) + head * P + p[None, :], mask=inside[:, None], other=0.0)
        B = tl.load(B_ptr + rows[:, None] * B_stride + n[None, :], mask=inside[:, None], other=0.0)
        C = tl.load(C_ptr + rows[:, None] * C_stride + n[None, :], mask=inside[:, None], other=0.0)
        before = tl.load(states_ptr + place + tile)

        mixing = _dot(C, tl.trans(B)) * _within(log_decay, Q)  # of dt x, not of x
        from_end = _dot(B, dstate.to(x.dtype)) * tl.exp(total - log_decay)[:, None]
        dxdt = _dot(tl.trans(mixing).to(x.dtype), dy) + from_end
        share = _dot(dy, tl.trans(x)) * mixing * dt[None, :]
        dlog = tl.sum(share, 1) - tl.sum(share, 0)
        dlog += tl.sum(dy * _dot(C, before.to(x.dtype)), 1) * tl.exp(log_decay)
        carried = tl.sum(x * from_end, 1) * dt
        dtotal = tl.sum(carried, 0) + tl.exp(total) * tl.sum(tl.sum(dstate * before, 1), 0)
        dlog -= carried
        # log_decay is a running sum: a position's own decay counts for all later ones
        dstep = tl.sum(dlog, 0) - tl.cumsum(dlog, 0) + dlog + dtotal
        ddt = (dstep * rate + tl.sum(x * dxdt, 1)) * tl.sigmoid(raw)
        dx = dxdt * dt[:, None] + dy * D
        tl.store(dx_ptr + rows[:, None] * dx_stride + head * P + p[None, :], dx.to(x.dtype), mask=inside[:, None])
        tl.store(ddt_ptr + rows * ddt_stride + head, ddt.to(ddt_ptr.dtype.element_ty), mask=inside)
        drate += tl.sum(dstep * dt, 0)
        dD += tl.sum(tl.sum(dy.to(tl.float32) * x, 1), 0)
        weighted = (dy * tl.exp(log_decay)[:, None]).to(x.dtype)
        dstate = dstate * tl.exp(total) + _dot(tl.trans(C), weighted)
    tl.store(drate_ptr + sequence * H + head, drate)
    tl.store(dD_ptr + sequence * H + head, dD)


@triton.jit
def _backward_bc(  # type: ignore[no-untyped-def]
    x_ptr, dt_ptr, bias_ptr, rate_ptr, B_ptr, C_ptr, dy_ptr, bounds_ptr, states_ptr, dstates_ptr, dB_ptr, dC_ptr,
    x_stride, dt_stride, B_stride, C_stride, R, H,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C in one chunk, added up over G heads, which all share them."""
    chunk, group = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(bounds_ptr + 2 * chunk), tl.load(bounds_ptr + 2 * chunk + 1)
    q, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    rows = (begin + q).to(tl.int64)
    inside = rows < end
    tile = n[:, None] * P + p[None, :]
    B = tl.load(B_ptr + rows[:, None] * B_stride + n[None, :], mask=inside[:, None], other=0.0)
    C = tl.load(C_ptr + rows[:, None] * C_stride + n[None, :], mask=inside[:, None], other=0.0)
    dmixing, dB, dC = tl.zeros((Q, Q), tl.float32), tl.zeros((Q, N), tl.float32), tl.zeros((Q, N), tl.float32)
    for head in range(group * G, group * G + G):
        _, dt, log_decay = _decays(dt_ptr, bias_ptr, rate_ptr, rows, inside, head, dt_stride)
        total = tl.sum(dt, 0) * tl.load(rate_ptr + head)
        x = tl.load(x_ptr + rows[:, None] * x_stride + head * P + p[None, :], mask=inside[:, None], other=0.0)
        dy = tl.load(dy_ptr + rows[:, None] * (H * P) + head * P + p[None, :], mask=inside[:, None], other=0.0)
        place = (chunk.to(tl.int64) * H + head) * (N * P) + tile
        before, dafter = tl.load(states_ptr + place), tl.load(dstates_ptr + place)
        dmixing += _dot(dy, tl.trans(x)) * _within(log_decay, Q) * dt[None, :]
        dC += _dot(dy, tl.trans(before).to(dy.dtype)) * tl.exp(log_decay)[:, None]
        dB += _dot(x, tl.trans(dafter).to(x.dtype)) * (tl.exp(total - log_decay) * dt)[:, None]
    dC += _dot(dmixing.to(B.dtype), B)
    dB += _dot(tl.trans(dmixing).to(C.dtype), C)
    place = (group.to(tl.int64) * R + rows)[:, None] * N + n[None, :]
    tl.store(dB_ptr + place, dB, mask=inside[:, None])
    tl.store(dC_ptr + place, dC, mask=inside[:, None])


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a row and their chunks begin and end, int32."""

    starts_S: Tensor
    """The start of each sequence, and the end of the last, (S + 1)."""
    order_S: Tensor
    """The sequences, the longest first: they are what a GPU waits for at the end."""
    chunks_S: Tensor
    """The number of each sequence's first chunk."""
    bounds_K2: Tensor
    """First position and end of each chunk."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Layout":
        """The layout of a row that holds sequences of these lengths, one after the other."""
        ends = list(accumulate(lengths))
        starts = [end - length for end, length in zip(ends, lengths, strict=True)]
        bounds = [
            (begin, min(begin + CHUNK, end))
            for start, end in zip(starts, ends, strict=True)
            for begin in range(start, end, CHUNK)
        ]
        first_chunks = list(accumulate((-(-length // CHUNK) for length in lengths), initial=0))[:-1]
        order = sorted(range(len(lengths)), key=lambda sequence: -lengths[sequence])
        parts = ([0, *ends], order, first_chunks, [place for pair in bounds for place in pair])
        whole = torch.tensor([number for part in parts for number in part], dtype=torch.int32)
        if device.type == "cuda":  # one copy, for which the host does not wait
            whole = whole.pin_memory().to(device, non_blocking=True)
        return cls(*torch.split(whole, [len(part) for part in parts]))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RHP: Tensor,
        dt_RH: Tensor,
        dt_bias_H: Tensor,
        A_H: Tensor,
        B_RN: Tensor,
        C_RN: Tensor,
        D_H: Tensor,
        layout: Layout,
    ) -> Tensor:
        rows, heads, size = x_RHP.shape
        y_RHP = torch.empty((rows, heads, size), dtype=x_RHP.dtype, device=x_RHP.device)
        _forward[(len(layout.order_S), heads)](
            x_RHP, dt_RH, dt_bias_H, A_H, B_RN, C_RN, D_H, y_RHP, layout.starts_S, layout.order_S,
            x_RHP.stride(0), dt_RH.stride(0), B_RN.stride(0), C_RN.stride(0), heads,
            P=size, N=B_RN.shape[1], Q=CHUNK,
        )  # fmt: skip
        ctx.save_for_backward(x_RHP, dt_RH, dt_bias_H, A_H, B_RN, C_RN, D_H)
        ctx.layout = layout
        return y_RHP

    @staticmethod
    def backward(ctx: Any, dy_RHP: Tensor) -> tuple[Tensor | None, ...]:
        x_RHP, dt_RH, dt_bias_H, A_H, B_RN, C_RN, D_H = ctx.saved_tensors
        layout: Layout = ctx.layout
        rows, heads, size = x_RHP.shape
        width, sequences, chunks = B_RN.shape[1], len(layout.order_S), len(layout.bounds_K2) // 2
        together = math.gcd(HEADS_TOGETHER, heads)
        dy_RHP = dy_RHP.contiguous()
        states, dstates = x_RHP.new_empty((2, chunks, heads, width, size))
        dx_RHP, ddt_RH = torch.empty_like(dy_RHP), torch.empty((rows, heads), dtype=torch.float32, device=dy_RHP.device)
        dA_SH, dD_SH = ddt_RH.new_empty((2, sequences, heads))
        dB_GRN, dC_GRN = ddt_RH.new_empty((2, heads // together, rows, width))
        shape = {"P": size, "N": width, "Q": CHUNK}
        strides = (x_RHP.stride(0), dt_RH.stride(0), B_RN.stride(0), C_RN.stride(0))
        _backward_x[(sequences, heads)](
            x_RHP, dt_RH, dt_bias_H, A_H, B_RN, C_RN, D_H, dy_RHP, layout.starts_S, layout.chunks_S, layout.order_S,
            states, dstates, dx_RHP, ddt_RH, dA_SH, dD_SH, *strides, dx_RHP.stride(0), ddt_RH.stride(0), heads, **shape,
        )  # fmt: skip
        _backward_bc[(chunks, heads // together)](
            x_RHP, dt_RH, dt_bias_H, A_H, B_RN, C_RN, dy_RHP, layout.bounds_K2, states, dstates, dB_GRN, dC_GRN,
            *strides, rows, heads, **shape, G=together,
        )  # fmt: skip
        return (
            dx_RHP,
            ddt_RH.to(dt_RH.dtype),
            ddt_RH.sum(0).to(dt_bias_H.dtype),
            dA_SH.sum(0),
            dB_GRN.sum(0).to(B_RN.dtype),
            dC_GRN.sum(0).to(C_RN.dtype),
            dD_SH.sum(0).to(D_H.dtype),
            None,
        )


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
    y_RHP: Tensor = _Scan.apply(x_RHP, dt_RH, dt_bias_H, A_H, B_RN, C_RN, D_H, layout)  # type: ignore[no-untyped-call]
    return y_RHP
