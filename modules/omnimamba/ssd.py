"""The state-space dual scan of Mamba-2 in plain torch: chunked for sequences, one step at a time for generation.

Two forms of one recurrence ``h_t = exp(dt_t A) h_{t-1} + dt_t x_t (outer) B_t``, ``y_t = h_t C_t`` (Dao & Gu 2024,
section 6; one group of B and C). The tests check that they are equal.

Shapes: B batch, L length, H heads, P head size, N state size, K chunks, Q chunk size. A sequence id per position lets
independent sequences share a row: no state passes from one id to the next.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def ssd_chunked(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    chunk_size: int,
    seq_idx_BL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, H, P) and the state after the last position (B, H, P, N), with matrix products within chunks."""
    batch, length, heads, size = x_BLHP.shape
    padding = -length % chunk_size
    if seq_idx_BL is None:
        seq_idx_BL = x_BLHP.new_zeros((batch, length), dtype=torch.int32)
    if padding:  # dt = 0 leaves the state as it is
        x_BLHP = F.pad(x_BLHP, (0, 0, 0, 0, 0, padding))
        dt_BLH = F.pad(dt_BLH, (0, 0, 0, padding))
        B_BLN, C_BLN = (F.pad(t, (0, 0, 0, padding)) for t in (B_BLN, C_BLN))
        seq_idx_BL = torch.cat([seq_idx_BL, seq_idx_BL[:, -1:].expand(-1, padding)], dim=1)
    chunks = (length + padding) // chunk_size
    x = x_BLHP.view(batch, chunks, chunk_size, heads, size).transpose(2, 3)  # (B, K, H, Q, P)
    dt = dt_BLH.view(batch, chunks, chunk_size, heads).transpose(2, 3)  # (B, K, H, Q)
    B, C = (t.view(batch, chunks, chunk_size, -1) for t in (B_BLN, C_BLN))  # (B, K, Q, N)
    seq = seq_idx_BL.view(batch, chunks, chunk_size)
    a_cum = (dt * A_H[:, None]).cumsum(-1)  # (B, K, H, Q): log decay from the chunk's start
    xdt = x * dt[..., None]

    # 1. Within a chunk: the quadratic form, causal and within one sequence.
    visible = (seq[..., :, None] == seq[..., None, :]).tril()  # (B, K, Q, Q)
    decay = (a_cum[..., :, None] - a_cum[..., None, :]).masked_fill(~visible[:, :, None], -torch.inf).exp()
    y = ((C @ B.transpose(-1, -2))[:, :, None] * decay) @ xdt  # (B, K, H, Q, P)

    # 2. What each chunk adds to the state of the sequence it ends with.
    ends_with = seq[..., -1:]
    to_end = (a_cum[..., -1:] - a_cum).exp() * (seq == ends_with)[:, :, None]  # (B, K, H, Q)
    added = (xdt * to_end[..., None]).transpose(-1, -2) @ B[:, :, None]  # (B, K, H, P, N)

    # 3. From chunk to chunk: the state continues if the sequence does.
    came_from = torch.cat([seq[:, :1, :1], ends_with[:, :-1]], dim=1)  # (B, K, 1): last id of the chunk before
    keep = a_cum[..., -1].exp() * (came_from == ends_with)  # (B, K, H)
    state = torch.zeros_like(added[:, 0])
    before = []
    for keep_k, added_k in zip(keep.unbind(1), added.unbind(1), strict=True):  # indexing would be quadratic in backward
        before.append(state)
        state = state * keep_k[..., None, None] + added_k

    # 4. What the state before the chunk adds to the positions that continue its sequence.
    from_start = a_cum.exp() * (seq == came_from)[:, :, None]  # (B, K, H, Q)
    y = y + (C[:, :, None] @ torch.stack(before, dim=1).transpose(-1, -2)) * from_start[..., None]
    return y.transpose(2, 3).reshape(batch, chunks * chunk_size, heads, size)[:, :length], state


def ssd_step(
    x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BN: Tensor, C_BN: Tensor, state_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of the recurrence: output (B, H, P) and the new state (B, H, P, N)."""
    added = (dt_BH[..., None] * x_BHP)[..., None] * B_BN[:, None, None, :]
    state = state_BHPN * (dt_BH * A_H).exp()[..., None, None] + added
    return (state @ C_BN[:, None, :, None])[..., 0], state


def causal_conv(x_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor, seq_idx_BL: Tensor | None = None) -> Tensor:
    """Depthwise causal convolution over the length, (B, L, D). Taps into another sequence count as zero."""
    length, width = x_BLD.shape[1], weight_DW.shape[1]
    padded = F.pad(x_BLD, (0, 0, width - 1, 0))
    y = bias_D + x_BLD * weight_DW[:, -1]
    for back in range(1, width):
        tap = padded[:, width - 1 - back : width - 1 - back + length]
        if seq_idx_BL is not None:
            ids = F.pad(seq_idx_BL, (back, 0), value=-1)[:, :length]
            tap = tap * (ids == seq_idx_BL)[..., None]
        y = y + tap * weight_DW[:, -1 - back]
    return y
