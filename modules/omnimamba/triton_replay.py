"""One position of the scan for every row of a batch, which writes the state only at every 16th, in Triton.

A token reads and writes all states, and that is most of its time in large batches. Here it reads them alone: the last
positions are kept beside the state, and the outputs follow from both,

    y_i = exp(l_i) C_i S + sum over j <= i of (C_i . B_j) exp(l_i - l_j) dt_j x_j,

where S is the state that was written last and l the running sum of dt A since then. The same algebra, so the same
numbers up to rounding, with 16 roundings of the state a picture of 256 tokens instead of 256 (ReplaySSM, 2026).

Shapes: B batch, H heads, P head size, N state size, T positions between two writes.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from modules.omnimamba.triton_ssd_forward import log_1_plus

KEPT, PART = 16, 16
"""T, a power of two, and values of a head that one program computes."""


@dataclass
class Recent:
    """The positions since the state was written last, the same number in all rows."""

    x_BTHP: Tensor
    B_BTN: Tensor
    step_BTH: Tensor
    """dt after softplus, float32."""
    log_BTH: Tensor
    """Log decay since the state was written, float32."""
    count: Tensor
    """Their number, int32, on the device: a recorded graph reads it anew each time."""

    @classmethod
    def empty(cls, batch: int, heads: int, size: int, width: int, dtype: torch.dtype, device: torch.device) -> "Recent":
        """No positions yet; ``dtype`` is that of x and B."""
        step, log = torch.zeros((2, batch, KEPT, heads), dtype=torch.float32, device=device)
        return cls(
            x_BTHP=torch.zeros((batch, KEPT, heads, size), dtype=dtype, device=device),
            B_BTN=torch.zeros((batch, KEPT, width), dtype=dtype, device=device),
            step_BTH=step,
            log_BTH=log,
            count=torch.zeros((), dtype=torch.int32, device=device),
        )


@triton.jit
def _step(  # type: ignore[no-untyped-def]
    x_ptr, dt_ptr, bias_ptr, rate_ptr, B_ptr, C_ptr, D_ptr, state_ptr, xs_ptr, Bs_ptr, steps_ptr, logs_ptr, count_ptr,
    y_ptr, x_stride, dt_stride, B_stride, C_stride, H,
    P: tl.constexpr, N: tl.constexpr, T: tl.constexpr, PART: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """One row, head, and part of the head's P values; a whole state would need too many registers."""
    row, head, count = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.load(count_ptr)
    p, n, t = tl.program_id(2) * PART + tl.arange(0, PART), tl.arange(0, N), tl.arange(0, T)
    raw = tl.load(dt_ptr + row * dt_stride + head).to(tl.float32) + tl.load(bias_ptr + head)
    step = tl.where(raw > 20.0, raw, log_1_plus(tl.exp(tl.minimum(raw, 20.0))))
    place = (row * T + t) * H + head
    log = step * tl.load(rate_ptr + head) + tl.load(logs_ptr + place - H, mask=(t == count) & (t > 0), other=0.0).sum()
    x = tl.load(x_ptr + row * x_stride + head * P + p)
    B, C = tl.load(B_ptr + row * B_stride + n), tl.load(C_ptr + row * C_stride + n).to(tl.float32)

    # 1. The positions since the last write, with this one.
    before, now = (t < count)[:, None], (t == count)[:, None]
    Bs = tl.load(Bs_ptr + (row * T + t[:, None]) * N + n[None, :], mask=before, other=0.0)
    Bs = tl.where(now, B[None, :], Bs).to(tl.float32)
    xs = tl.load(xs_ptr + place[:, None] * P + p[None, :], mask=before, other=0.0)
    xs = tl.where(now, x[None, :], xs).to(tl.float32)
    steps = tl.where(t == count, step, tl.load(steps_ptr + place, mask=t < count, other=0.0))
    logs = tl.where(t == count, log, tl.load(logs_ptr + place, mask=t < count, other=0.0))
    weights = tl.where(t <= count, tl.exp(log - logs) * steps, 0.0)

    # 2. The output, from them and from the state.
    tile = state_ptr + ((row * H + head) * P + p[:, None]) * N + n[None, :]
    state = tl.load(tile).to(tl.float32)
    y = tl.exp(log) * tl.sum(state * C[None, :], 1)
    y += tl.sum((tl.sum(Bs * C[None, :], 1) * weights)[:, None] * xs, 0)
    y += tl.load(D_ptr + head) * x.to(tl.float32)
    tl.store(y_ptr + (row * H + head) * P + p, y.to(y_ptr.dtype.element_ty))

    # 3. Keep this position, or write the state.
    if WRITE:
        added = tl.dot(tl.trans(weights[:, None] * xs), Bs, input_precision="ieee")
        tl.store(tile, (tl.exp(log) * state + added).to(state_ptr.dtype.element_ty))
    else:
        last = row * T + count
        tl.store(xs_ptr + (last * H + head) * P + p, x)
        if tl.program_id(2) == 0:
            tl.store(steps_ptr + last * H + head, step)
            tl.store(logs_ptr + last * H + head, log)
            if head == 0:
                tl.store(Bs_ptr + last * N + n, B)


def replay_step(
    x_BHP: Tensor,
    dt_BH: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    B_BN: Tensor,
    C_BN: Tensor,
    D_H: Tensor,
    state_BHPN: Tensor,
    recent: Recent,
    *,
    write: bool,
) -> Tensor:
    """One position of the scan, (B, H, P), with softplus(dt + dt_bias). Updates ``recent``, or writes the state.

    ``write`` must be true at every 16th position and only there; then call `advance`. A graph of each kind serves all
    positions. The state may be in 16 bits; sums are in float32. Last dimensions are contiguous.
    """
    batch, heads, size = x_BHP.shape
    y_BHP = torch.empty((batch, heads, size), dtype=x_BHP.dtype, device=x_BHP.device)
    part = min(size, PART)
    _step[(batch, heads, size // part)](
        x_BHP, dt_BH, dt_bias_H, A_H, B_BN, C_BN, D_H, state_BHPN, recent.x_BTHP, recent.B_BTN, recent.step_BTH,
        recent.log_BTH, recent.count, y_BHP, x_BHP.stride(0), dt_BH.stride(0), B_BN.stride(0), C_BN.stride(0), heads,
        P=size, N=B_BN.shape[1], T=KEPT, PART=part, WRITE=write,
    )  # fmt: skip
    return y_BHP


def advance(recent: Recent) -> None:
    """Count a position, after all programs have read the count."""
    recent.count.add_(1).remainder_(KEPT)
