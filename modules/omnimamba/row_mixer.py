"""A mixer after its input projection, for training rows of many short sequences: one differentiable function.

It does what `kernels.mix` does, with our scan (`triton_ssd`) in the place of mamba_ssm's. Only the input, the scan's
output and the norm's scale are kept for the backward pass, which computes convolution and norm again.

Shapes: R positions of the row, D d_model, E d_inner, H heads, P head size, N state size, W convolution width,
C = E + 2N channels of the convolution, Z = 2E + 2N + H columns of the input projection.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.omnimamba import kernels
from modules.omnimamba.config import ModelConfig

if TYPE_CHECKING:  # Triton comes with torch for GPUs, and only there is it needed
    from modules.omnimamba.triton_ssd import Layout

Scan = Literal["auto", "mamba_ssm", "rows"]
LONGEST = 1024
"""Our scan takes rows whose sequences have at most this mean length, where each position counts once. In a row of stage
2 that is 485, and our scan is faster; at 1,182 it is not known to be (docs/experiments.md)."""


def layout_of(
    lengths: Sequence[int], config: ModelConfig, scan: Scan, compute: torch.dtype, device: torch.device
) -> "Layout | None":
    """The row's layout if our scan serves it, None if mamba_ssm's kernels or the reference do."""
    if not serves(lengths, config, scan, compute, device):
        return None
    from modules.omnimamba.triton_ssd import Layout

    return Layout.of(lengths, device)


def serves(lengths: Sequence[int], config: ModelConfig, scan: Scan, compute: torch.dtype, device: torch.device) -> bool:
    """Whether our scan serves a row of sequences of these lengths.

    ``auto`` chooses by the lengths: our scan's work grows with their squares. Our scan takes bf16, on a GPU alone, head
    and state sizes that are powers of two, and a multiple of eight heads.
    """
    sizes = all(n >= 16 and n & (n - 1) == 0 for n in (config.headdim, config.d_state))
    sizes = sizes and config.n_heads % 8 == 0  # causal_conv1d wants rows of a multiple of 16 bytes
    if device.type != "cuda" or compute != torch.bfloat16 or scan == "mamba_ssm" or not sizes:
        return False
    return scan == "rows" or sum(n * n for n in lengths) <= LONGEST * sum(lengths)


class _MixRow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        zxbcdt_RZ: Tensor,
        conv_weight_CW: Tensor,
        conv_bias_C: Tensor,
        dt_bias_H: Tensor,
        A_H: Tensor,
        D_H: Tensor,
        norm_weight_E: Tensor,
        out_weight_DE: Tensor,
        seq_idx_1R: Tensor,
        layout: "Layout",
        norm_eps: float,
    ) -> Tensor:
        from modules.omnimamba.triton_ssd import scan_forward

        given = kernels.load()
        z_RE, xBC_RC, dt_RH = _columns(zxbcdt_RZ, conv_weight_CW, D_H)
        mixed_RC = given.conv_forward(_channels(xBC_RC), conv_weight_CW, conv_bias_C, seq_idx_1R, None, None, True)
        x_RHP, B_RN, C_RN = _split(mixed_RC[0].T, z_RE, D_H)
        y_RHP = scan_forward(layout, x_RHP, dt_RH, dt_bias_H, A_H, B_RN, C_RN, D_H)
        normed_RE, _, scale_R = given.gated_norm_forward(
            y_RHP.flatten(1), norm_weight_E, None, norm_eps, z=z_RE, norm_before_gate=False, is_rms_norm=True
        )
        ctx.save_for_backward(
            zxbcdt_RZ, conv_weight_CW, conv_bias_C, dt_bias_H, A_H, D_H, norm_weight_E, out_weight_DE, seq_idx_1R,
            y_RHP, scale_R,
        )  # fmt: skip
        ctx.layout, ctx.norm_eps = layout, norm_eps
        return F.linear(normed_RE, out_weight_DE.to(normed_RE.dtype))

    @staticmethod
    def backward(ctx: Any, dout_RD: Tensor) -> tuple[Tensor | None, ...]:
        from modules.omnimamba.triton_ssd import scan_backward

        (
            zxbcdt_RZ, conv_weight_CW, conv_bias_C, dt_bias_H, A_H, D_H, norm_weight_E, out_weight_DE, seq_idx_1R,
            y_RHP, scale_R,
        ) = ctx.saved_tensors  # fmt: skip
        given = kernels.load()
        z_RE, xBC_RC, dt_RH = _columns(zxbcdt_RZ, conv_weight_CW, D_H)
        dzxbcdt_RZ = torch.empty_like(zxbcdt_RZ)
        dz_RE, dxBC_RC, ddt_RH = _columns(dzxbcdt_RZ, conv_weight_CW, D_H)

        # 1. Through the output projection and the norm. A frozen projection's input is not needed.
        dnormed_RE = dout_RD @ out_weight_DE.to(dout_RD.dtype)
        trained = ctx.needs_input_grad[7]
        dy_RE, dnorm_weight_E, _, _, *normed = given.gated_norm_backward(
            dnormed_RE, y_RHP.flatten(1), norm_weight_E, None, ctx.norm_eps, None, scale_R, z=z_RE,
            norm_before_gate=False, is_rms_norm=True, recompute_output=trained, dz=dz_RE,
        )  # fmt: skip
        del dnormed_RE
        dout_weight_DE = (dout_RD.T @ normed[0]).to(out_weight_DE.dtype) if trained else None
        del normed

        # 2. Through the scan and the convolution.
        mixed_RC = given.conv_forward(_channels(xBC_RC), conv_weight_CW, conv_bias_C, seq_idx_1R, None, None, True)[0].T
        dmixed_RC = torch.empty_like(mixed_RC)
        x_RHP, B_RN, C_RN = _split(mixed_RC, z_RE, D_H)
        found = scan_backward(
            ctx.layout,
            _split(dmixed_RC, z_RE, D_H),
            dy_RE.view_as(y_RHP),
            x_RHP,
            dt_RH,
            dt_bias_H,
            A_H,
            B_RN,
            C_RN,
            D_H,
        )
        ddt_RH.copy_(found.dt_RH)
        _, dconv_weight_CW, dconv_bias_C, _ = given.conv_backward(
            _channels(xBC_RC), conv_weight_CW, conv_bias_C, _channels(dmixed_RC), seq_idx_1R, None, None,
            _channels(dxBC_RC), False, True,
        )  # fmt: skip
        return (
            dzxbcdt_RZ, dconv_weight_CW, dconv_bias_C, found.dt_bias_H, found.A_H, found.D_H, dnorm_weight_E,
            dout_weight_DE, None, None, None,
        )  # fmt: skip


def mix_row(
    zxbcdt_RZ: Tensor,
    *,
    conv_weight_CW: Tensor,
    conv_bias_C: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    D_H: Tensor,
    norm_weight_E: Tensor,
    norm_eps: float,
    out_weight_DE: Tensor,
    seq_idx_R: Tensor,
    layout: "Layout",
) -> Tensor:
    """The whole mixer after its input projection, (R, D)."""
    out_RD: Tensor = _MixRow.apply(  # type: ignore[no-untyped-call]
        zxbcdt_RZ, conv_weight_CW, conv_bias_C, dt_bias_H, A_H, D_H, norm_weight_E, out_weight_DE, seq_idx_R[None],
        layout, norm_eps,
    )  # fmt: skip
    return out_RD


def _columns(zxbcdt_RZ: Tensor, conv_weight_CW: Tensor, D_H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z, the convolution's input, and dt."""
    channels, heads = len(conv_weight_CW), len(D_H)
    z_RE, xBC_RC, dt_RH = torch.split(zxbcdt_RZ, [zxbcdt_RZ.shape[1] - channels - heads, channels, heads], dim=1)
    return z_RE, xBC_RC, dt_RH


def _split(mixed_RC: Tensor, z_RE: Tensor, D_H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x in heads, B and C."""
    inner = z_RE.shape[1]
    width = (mixed_RC.shape[1] - inner) // 2
    x_RE, B_RN, C_RN = torch.split(mixed_RC, [inner, width, width], dim=1)
    return x_RE.view(len(x_RE), len(D_H), -1), B_RN, C_RN


def _channels(x_RC: Tensor) -> Tensor:
    """As causal_conv1d wants it: (1, C, R), with neighbouring channels next to each other in memory."""
    return x_RC.T[None]
