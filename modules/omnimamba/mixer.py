"""The Mamba-2 mixer: one set of parameters, run on whole sequences or one position at a time.

Shapes: B batch, L length, D d_model, E d_inner, H heads, P head size, N state size, W convolution width,
C = E + 2N channels of the convolution, Z = 2E + 2N + H columns of the input projection.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba import kernels
from modules.omnimamba.adapters import Segments, TaskLoraLinear
from modules.omnimamba.config import ModelConfig, Task
from modules.omnimamba.projection import recomputed
from modules.omnimamba.row_mixer import mix_row
from modules.omnimamba.ssd import causal_conv, ssd_chunked, ssd_step

if TYPE_CHECKING:
    from modules.omnimamba.triton_ssd import Layout


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32; the result has the input's type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in ``width``."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


@dataclass
class MixerState:
    """What a mixer remembers of a sequence: the last convolution inputs (B, C, W-1), the SSM state (B, H, P, N)."""

    conv: Tensor
    ssm: Tensor


class StepWeights(NamedTuple):
    """A mixer's weights prepared for single positions of one task: adapters merged, matrices cast."""

    in_proj: Tensor
    """(Z, D)."""
    out_proj: Tensor
    """(D, E)."""
    A: Tensor
    """(H,), negative, float32."""


class Mamba2Mixer(nn.Module):
    """``in_proj`` -> causal convolution -> state-space scan -> gated norm -> ``out_proj``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_projection = False
        """In training, do not keep the input projection's output, the largest tensor of a block."""
        inner, state, heads = config.d_inner, config.d_state, config.n_heads
        lora = config.adapters if config.lora == "task" else None
        self.in_proj = TaskLoraLinear(config.d_model, 2 * inner + 2 * state + heads, lora)
        self.conv1d = nn.Conv1d(inner + 2 * state, inner + 2 * state, config.d_conv, groups=inner + 2 * state)
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner, config.gated_norm_eps)
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)

    def forward(
        self,
        u_BLD: Tensor,
        segments: Segments,
        seq_idx_BL: Tensor | None = None,
        state: MixerState | None = None,
        layout: "Layout | None" = None,
    ) -> Tensor:
        """(B, L, D) to (B, L, D). If ``state`` is given, it is filled with what a later `step` needs.

        A row with a ``layout`` takes the kernels for many short sequences, which do not compute states.
        """
        zxbcdt = self.in_proj(u_BLD, segments)
        with recomputed(zxbcdt) if self.recompute_projection else nullcontext():
            if layout is not None and seq_idx_BL is not None:
                return self._mix_row(zxbcdt.squeeze(0), seq_idx_BL.squeeze(0), layout).unsqueeze(0)
            mix = self._mix_by_kernel if u_BLD.is_cuda else self._mix_by_reference
            y, last = mix(zxbcdt, seq_idx_BL)
        if state is not None:
            width = self.config.d_conv - 1
            xBC_BCL = self._parts(zxbcdt)[1].transpose(1, 2)
            state.conv = F.pad(xBC_BCL, (width, 0))[..., -width:].contiguous()
            state.ssm = last
        return y

    @torch.no_grad()
    def step_weights(self, task: Task, compute: torch.dtype) -> StepWeights:
        """The weights that `step` uses for a sequence of ``task``, with matrices in type ``compute``."""
        return StepWeights(self.in_proj.merged(task).to(compute), self.out_proj.weight.to(compute), self._A())

    def step(self, u_BD: Tensor, weights: StepWeights, state: MixerState) -> Tensor:
        """Run one position, (B, D) to (B, D), and update ``state``, on a GPU in place."""
        z, xBC, dt = self._parts(F.linear(u_BD.to(weights.in_proj.dtype), weights.in_proj))
        if u_BD.is_cuda:
            mixed = kernels.conv_step(xBC, state.conv, self._conv_weight(), self._conv_bias())
            x, B, C = self._split(mixed)
            y = kernels.ssm_step(x, dt, self.dt_bias, weights.A, B, C, self.D, state.ssm)
            gated = kernels.gated_norm(y.flatten(-2), z, self.norm.weight, self.norm.eps)
        else:
            window = torch.cat([state.conv, xBC[..., None]], dim=-1)
            state.conv = window[..., 1:]
            x, B, C = self._split(F.silu((window * self._conv_weight()).sum(-1) + self._conv_bias()))
            y, state.ssm = ssd_step(x, self._positive(dt), weights.A, B, C, state.ssm)
            gated = self._gate(y + self.D[:, None] * x, z)
        return F.linear(gated.to(weights.out_proj.dtype), weights.out_proj)

    def _mix_row(self, zxbcdt_RZ: Tensor, seq_idx_R: Tensor, layout: "Layout") -> Tensor:
        return mix_row(zxbcdt_RZ, **self._weights(), seq_idx_R=seq_idx_R, layout=layout)

    def _mix_by_kernel(self, zxbcdt_BLZ: Tensor, seq_idx_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        return kernels.mix(
            zxbcdt_BLZ,
            **self._weights(),
            chunk_size=self.config.chunk_size,
            headdim=self.config.headdim,
            seq_idx_BL=seq_idx_BL,
        )

    def _weights(self) -> dict[str, Any]:
        """What both kernels read besides the input projection's output."""
        return {
            "conv_weight_CW": self._conv_weight(),
            "conv_bias_C": self._conv_bias(),
            "dt_bias_H": self.dt_bias,
            "A_H": self._A(),
            "D_H": self.D,
            "norm_weight_E": self.norm.weight,
            "norm_eps": self.norm.eps,
            "out_weight_DE": self.out_proj.weight,
        }

    def _mix_by_reference(self, zxbcdt_BLZ: Tensor, seq_idx_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        z, xBC, dt = self._parts(zxbcdt_BLZ)
        x, B, C = self._split(F.silu(causal_conv(xBC, self._conv_weight(), self._conv_bias(), seq_idx_BL)))
        y, last = ssd_chunked(x, self._positive(dt), self._A(), B, C, self.config.chunk_size, seq_idx_BL)
        return self.out_proj(self._gate(y + self.D[:, None] * x, z)), last

    def _parts(self, zxbcdt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, state = self.config.d_inner, self.config.d_state
        z, xBC, dt = torch.split(zxbcdt, [inner, inner + 2 * state, self.config.n_heads], dim=-1)
        return z, xBC, dt

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, state = self.config.d_inner, self.config.d_state
        x, B, C = torch.split(xBC, [inner, state, state], dim=-1)
        return x.view(*x.shape[:-1], self.config.n_heads, self.config.headdim), B, C

    def _gate(self, y: Tensor, z: Tensor) -> Tensor:
        gated: Tensor = self.norm(y.flatten(-2) * F.silu(z))
        return gated

    def _positive(self, dt: Tensor) -> Tensor:
        return F.softplus(dt.float() + self.dt_bias)

    def _A(self) -> Tensor:
        return -self.A_log.float().exp()

    def _conv_weight(self) -> Tensor:
        return self.conv1d.weight[:, 0]

    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias
