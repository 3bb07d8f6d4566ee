"""The mixer's causal convolution of four positions with SiLU, over a row of sequences, forward and backward, in Triton.

It reads each position's place within its sequence, so that no sequence sees another. The backward pass computes the
convolution again. Every sum has a fixed order.

Shapes: R positions of the row, C channels, W = 4 positions that an output sees.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS, LOOPS = 32, 64, 16
"""Positions and channels of a tile; tiles that a program of the backward pass goes through, to add up weights'
gradients."""


@triton.jit
def _shifted(x_ptr, rows, shift, R, x_stride, channels, known):  # type: ignore[no-untyped-def]
    """x at ``rows + shift``, zeros outside of the row, float32, (ROWS, CHANNELS)."""
    at = rows + shift
    inside = ((at >= 0) & (at < R))[:, None] & known
    return tl.load(x_ptr + at[:, None] * x_stride + channels, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _sees(within_ptr, rows, back, R):  # type: ignore[no-untyped-def]
    """Whether the position ``back`` before each of ``rows`` is in the same sequence."""
    return tl.load(within_ptr + rows, mask=(rows >= 0) & (rows < R), other=-1) >= back


@triton.jit
def _convolved(x0, x1, x2, x3, sees1, sees2, sees3, w0, w1, w2, w3, bias):  # type: ignore[no-untyped-def]
    """Outputs before SiLU; x1 is the position before x0, and w0 its weight."""
    y = bias[None, :] + w0[None, :] * x0
    y += tl.where(sees1[:, None], w1[None, :] * x1, 0.0)
    y += tl.where(sees2[:, None], w2[None, :] * x2, 0.0)
    return y + tl.where(sees3[:, None], w3[None, :] * x3, 0.0)


@triton.jit
def _weights(weight_ptr, bias_ptr, channel, C):  # type: ignore[no-untyped-def]
    """Of each channel: the weight of the position itself, of the ones before it, and the bias."""
    known = channel < C
    w0 = tl.load(weight_ptr + channel * 4 + 3, mask=known, other=0.0)
    w1 = tl.load(weight_ptr + channel * 4 + 2, mask=known, other=0.0)
    w2 = tl.load(weight_ptr + channel * 4 + 1, mask=known, other=0.0)
    w3 = tl.load(weight_ptr + channel * 4, mask=known, other=0.0)
    return w0, w1, w2, w3, tl.load(bias_ptr + channel, mask=known, other=0.0)


@triton.jit(do_not_specialize=["R"])
def _conv_forward(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, within_ptr, y_ptr, x_stride, R, C, BR: tl.constexpr, BC: tl.constexpr
):
    rows = (tl.program_id(1) * BR + tl.arange(0, BR)).to(tl.int64)
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    channels, known = channel[None, :], (channel < C)[None, :]
    w0, w1, w2, w3, bias = _weights(weight_ptr, bias_ptr, channel, C)
    y = _convolved(
        _shifted(x_ptr, rows, 0, R, x_stride, channels, known),
        _shifted(x_ptr, rows, -1, R, x_stride, channels, known),
        _shifted(x_ptr, rows, -2, R, x_stride, channels, known),
        _shifted(x_ptr, rows, -3, R, x_stride, channels, known),
        _sees(within_ptr, rows, 1, R), _sees(within_ptr, rows, 2, R), _sees(within_ptr, rows, 3, R),
        w0, w1, w2, w3, bias,
    )  # fmt: skip
    y *= tl.sigmoid(y)
    tl.store(y_ptr + rows[:, None] * C + channels, y.to(y_ptr.dtype.element_ty), mask=(rows < R)[:, None] & known)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    dy_ptr, within_ptr, rows, shift, x0, x1, x2, x3, w0, w1, w2, w3, bias, R, C, channels, known
):
    """Gradient of the outputs before SiLU at ``rows + shift``; zero in other sequences than that of ``rows``."""
    at = rows + shift
    y = _convolved(
        x0, x1, x2, x3,
        _sees(within_ptr, at, 1, R), _sees(within_ptr, at, 2, R), _sees(within_ptr, at, 3, R),
        w0, w1, w2, w3, bias,
    )  # fmt: skip
    dy = _shifted(dy_ptr, rows, shift, R, C, channels, known)
    share = tl.sigmoid(y)
    return tl.where(_sees(within_ptr, at, shift, R)[:, None], dy * share * (1.0 + y * (1.0 - share)), 0.0)


@triton.jit(do_not_specialize=["R"])
def _conv_backward(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, within_ptr, dy_ptr, dx_ptr, dweight_ptr, dbias_ptr, x_stride, dx_stride, R, C,
    BR: tl.constexpr, BC: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    channels, known = channel[None, :], (channel < C)[None, :]
    w0, w1, w2, w3, bias = _weights(weight_ptr, bias_ptr, channel, C)
    dw0, dw1, dw2, dw3 = (
        tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32),
        tl.zeros((BC,), tl.float32),
    )  # fmt: skip
    dbias = tl.zeros((BC,), tl.float32)
    for loop in range(0, LOOP):
        rows = (tl.program_id(1) * (BR * LOOP) + loop * BR + tl.arange(0, BR)).to(tl.int64)
        # positions from three before to three after the rows
        a = _shifted(x_ptr, rows, -3, R, x_stride, channels, known)
        b = _shifted(x_ptr, rows, -2, R, x_stride, channels, known)
        c = _shifted(x_ptr, rows, -1, R, x_stride, channels, known)
        d = _shifted(x_ptr, rows, 0, R, x_stride, channels, known)
        dy = _gradient(dy_ptr, within_ptr, rows, 0, d, c, b, a, w0, w1, w2, w3, bias, R, C, channels, known)
        dx = w0[None, :] * dy
        dbias += tl.sum(dy, 0)
        dw0 += tl.sum(dy * d, 0)
        dw1 += tl.sum(tl.where(_sees(within_ptr, rows, 1, R)[:, None], dy * c, 0.0), 0)
        dw2 += tl.sum(tl.where(_sees(within_ptr, rows, 2, R)[:, None], dy * b, 0.0), 0)
        dw3 += tl.sum(tl.where(_sees(within_ptr, rows, 3, R)[:, None], dy * a, 0.0), 0)
        e = _shifted(x_ptr, rows, 1, R, x_stride, channels, known)
        dy = _gradient(dy_ptr, within_ptr, rows, 1, e, d, c, b, w0, w1, w2, w3, bias, R, C, channels, known)
        dx += w1[None, :] * dy
        f = _shifted(x_ptr, rows, 2, R, x_stride, channels, known)
        dy = _gradient(dy_ptr, within_ptr, rows, 2, f, e, d, c, w0, w1, w2, w3, bias, R, C, channels, known)
        dx += w2[None, :] * dy
        g = _shifted(x_ptr, rows, 3, R, x_stride, channels, known)
        dy = _gradient(dy_ptr, within_ptr, rows, 3, g, f, e, d, w0, w1, w2, w3, bias, R, C, channels, known)
        dx += w3[None, :] * dy
        inside = (rows < R)[:, None] & known
        tl.store(dx_ptr + rows[:, None] * dx_stride + channels, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    place = tl.program_id(1) * C + channel
    tl.store(dbias_ptr + place, dbias, mask=channel < C)
    tl.store(dweight_ptr + place * 4 + 3, dw0, mask=channel < C)
    tl.store(dweight_ptr + place * 4 + 2, dw1, mask=channel < C)
    tl.store(dweight_ptr + place * 4 + 1, dw2, mask=channel < C)
    tl.store(dweight_ptr + place * 4, dw3, mask=channel < C)


def conv_forward(x_RC: Tensor, weight_CW: Tensor, bias_C: Tensor, within_R: Tensor) -> Tensor:
    """Outputs (R, C). The channels of ``x`` are contiguous; ``within`` is each position's place in its sequence."""
    rows, channels = x_RC.shape
    y_RC = torch.empty((rows, channels), dtype=x_RC.dtype, device=x_RC.device)
    _conv_forward[(triton.cdiv(channels, CHANNELS), triton.cdiv(rows, ROWS))](
        x_RC, weight_CW, bias_C, within_R, y_RC, x_RC.stride(0), rows, channels, BR=ROWS, BC=CHANNELS
    )
    return y_RC


def conv_backward(
    dy_RC: Tensor, x_RC: Tensor, weight_CW: Tensor, bias_C: Tensor, within_R: Tensor, into_RC: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias, float32; that of x is written to ``into``. ``dy`` is contiguous."""
    rows, channels = x_RC.shape
    programs = triton.cdiv(rows, ROWS * LOOPS)
    dweight = torch.empty((programs, channels, 4), dtype=torch.float32, device=x_RC.device)
    dbias = dweight.new_empty((programs, channels))
    _conv_backward[(triton.cdiv(channels, CHANNELS), programs)](
        x_RC, weight_CW, bias_C, within_R, dy_RC, into_RC, dweight, dbias, x_RC.stride(0), into_RC.stride(0), rows,
        channels, BR=ROWS, BC=CHANNELS, LOOP=LOOPS, num_warps=8,
    )  # fmt: skip
    return dweight.sum(0), dbias.sum(0)
