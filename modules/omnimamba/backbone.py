"""The stack of Mamba-2 blocks that both tasks share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.omnimamba import kernels
from modules.omnimamba.adapters import Projection, Segments
from modules.omnimamba.config import ModelConfig, Task
from modules.omnimamba.mixer import Mamba2Mixer, MixerState, RMSNorm, StepWeights
from modules.omnimamba.row_mixer import Scan, layout_of
from modules.omnimamba.rows import sequence_ids

if TYPE_CHECKING:
    from modules.omnimamba.triton_ssd import Layout

BackboneState = list[MixerState]
Recompute = Literal["none", "projection", "block"]


class Block(nn.Module):
    """``residual + mixer(norm(residual))``; the residual stream stays in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mamba2Mixer(config)

    def forward(
        self,
        x_BLD: Tensor,
        residual_BLD: Tensor | None,
        segments: Segments,
        seq_idx_BL: Tensor | None = None,
        state: MixerState | None = None,
        layout: "Layout | None" = None,
    ) -> tuple[Tensor, Tensor]:
        """Take the previous block's output and the residual stream before it; return the same pair for this block."""
        normed, residual = add_norm(self.norm, x_BLD, residual_BLD)
        return self.mixer(normed, segments, seq_idx_BL, state, layout), residual


class Backbone(nn.Module):
    """Blocks and the final norm: hidden states in, hidden states out, (B, L, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.recompute: Recompute = "none"
        """What the backward pass of training computes again; see ``hardware.recompute``."""
        self.scan: Scan = "auto"
        """The scan's kernels for training rows on a GPU; see `row_mixer.layout_of`."""

    def choose(self, *, scan: Scan, projection: Projection, recompute: Recompute) -> None:
        """Choose how to train; see the fields of ``hardware`` with these names."""
        self.scan, self.recompute = scan, recompute
        for block in self.layers:
            assert isinstance(block, Block)
            block.mixer.in_proj.fused = projection == "fused"
            block.mixer.recompute_projection = recompute == "projection"

    def run_row(self, x_1RD: Tensor, segments: Segments, lengths: Sequence[int], compute: torch.dtype) -> Tensor:
        """Run a training row that holds sequences of ``lengths``, one after the other: hidden states (R, D)."""
        layout = layout_of(lengths, self.config, self.scan, compute, x_1RD.device)
        hidden_1RD: Tensor = self(x_1RD, segments, sequence_ids(lengths, x_1RD.device)[None], layout=layout)
        return hidden_1RD.squeeze(0)  # the gradient of an index would be a copy

    def forward(
        self,
        x_BLD: Tensor,
        segments: Segments,
        seq_idx_BL: Tensor | None = None,
        state: BackboneState | None = None,
        layout: "Layout | None" = None,
    ) -> Tensor:
        """Run whole sequences. An empty list passed as ``state`` is filled with one entry per block (prefill)."""
        x, residual = x_BLD, None
        for block in self.layers:
            memory = MixerState(conv=torch.empty(0), ssm=torch.empty(0)) if state is not None else None
            if self.recompute == "block" and torch.is_grad_enabled():
                x, residual = checkpoint(block, x, residual, segments, seq_idx_BL, None, layout, use_reentrant=False)
            else:
                x, residual = block(x, residual, segments, seq_idx_BL, memory, layout)
            if state is not None and memory is not None:
                state.append(memory)
        return add_norm(self.norm, x, residual)[0]

    def step_weights(self, task: Task, compute: torch.dtype) -> list[StepWeights]:
        """The weights that `step` uses, one entry per block."""
        return [block.mixer.step_weights(task, compute) for block in self.layers if isinstance(block, Block)]

    def step(self, x_BD: Tensor, weights: Sequence[StepWeights], state: BackboneState) -> Tensor:
        """Run one position, (B, D) to (B, D), and update ``state``, on a GPU in place."""
        x, residual = x_BD, None
        for block, own, memory in zip(self.layers, weights, state, strict=True):
            assert isinstance(block, Block)
            normed, residual = add_norm(block.norm, x, residual)
            x = block.mixer.step(normed, own, memory)
        return add_norm(self.norm, x, residual)[0]


def add_norm(norm: RMSNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """``residual + x`` in float32, and its norm in the type of ``x``: (norm, sum)."""
    if x.is_cuda:
        return kernels.add_norm(x, residual, norm.weight, norm.eps)
    total = x.float() if residual is None else residual + x
    normed: Tensor = norm(total).to(x.dtype)
    return normed, total
