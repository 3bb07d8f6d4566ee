"""The Mamba-2 mixer: one set of parameters, computed for sequences or one position at a time.

Shapes: B batch, L length, D d_model, E d_inner, H heads, P head size, N state size, W convolution width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba import kernels
from modules.omnimamba.adapters import Segments, TaskLoraLinear
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.ssd import causal_conv, ssd_chunked, ssd_step


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32, the result in the input's type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in ``width``."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


@dataclass
class MixerState:
    """What a mixer remembers of a sequence: the last convolution inputs (B, W-1, E+2N), the SSM state (B, H, P, N)."""

    conv: Tensor
    ssm: Tensor


class Mamba2Mixer(nn.Module):
    """``in_proj`` -> causal convolution -> state-space scan -> gated norm -> ``out_proj``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
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
        self, u_BLD: Tensor, segments: Segments, seq_idx_BL: Tensor | None = None, state: MixerState | None = None
    ) -> Tensor:
        """(B, L, D) to (B, L, D). ``state``, if given, is filled with what a later `step` needs."""
        z, xBC, dt = self._project(u_BLD, segments)
        if u_BLD.is_cuda:
            mixed = kernels.conv_silu(xBC, self.conv1d.weight[:, 0], self._conv_bias(), seq_idx_BL)
        else:
            mixed = F.silu(causal_conv(xBC, self.conv1d.weight[:, 0], self._conv_bias(), seq_idx_BL))
        x, B, C = self._split(mixed)
        scan = kernels.ssd if u_BLD.is_cuda else ssd_chunked
        y, last = scan(x, dt, self._A(), B, C, self.config.chunk_size, seq_idx_BL)
        if state is not None:
            width = self.config.d_conv - 1
            state.conv = F.pad(xBC, (0, 0, width, 0))[:, -width:]
            state.ssm = last
        return self._output(y + self.D[:, None] * x, z)

    def step(self, u_BD: Tensor, segments: Segments, state: MixerState) -> Tensor:
        """One position, (B, D) to (B, D); ``state`` moves on."""
        z, xBC, dt = self._project(u_BD[:, None], segments)
        window = torch.cat([state.conv, xBC], dim=1)
        state.conv = window[:, 1:]
        mixed = F.silu((window * self.conv1d.weight[:, 0].T).sum(1) + self._conv_bias())
        x, B, C = self._split(mixed)
        y, state.ssm = ssd_step(x, dt[:, 0], self._A(), B, C, state.ssm)
        return self._output((y + self.D[:, None] * x)[:, None], z)[:, 0]

    def _project(self, u_BLD: Tensor, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
        inner, state = self.config.d_inner, self.config.d_state
        sizes = [inner, inner + 2 * state, self.config.n_heads]
        z, xBC, dt = torch.split(self.in_proj(u_BLD, segments), sizes, dim=-1)
        return z, xBC, F.softplus(dt.float() + self.dt_bias)

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, state = self.config.d_inner, self.config.d_state
        x, B, C = torch.split(xBC, [inner, state, state], dim=-1)
        return x.view(*x.shape[:-1], self.config.n_heads, self.config.headdim), B, C

    def _output(self, y_BLHP: Tensor, z_BLE: Tensor) -> Tensor:
        y: Tensor = self.out_proj(self.norm(y_BLHP.flatten(-2) * F.silu(z_BLE)))
        return y

    def _A(self) -> Tensor:
        return -self.A_log.float().exp()

    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias
