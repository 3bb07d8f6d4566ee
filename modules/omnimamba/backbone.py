"""The stack of Mamba-2 blocks that both tasks share."""

import torch
from torch import Tensor, nn

from modules.omnimamba.adapters import Segments
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.mixer import Mamba2Mixer, MixerState, RMSNorm

BackboneState = list[MixerState]


class Block(nn.Module):
    """``residual + mixer(norm(residual))``; the residual stream stays in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mamba2Mixer(config)


class Backbone(nn.Module):
    """Blocks and the final norm: hidden states in, hidden states out, (B, L, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(
        self, x_BLD: Tensor, segments: Segments, seq_idx_BL: Tensor | None = None, state: BackboneState | None = None
    ) -> Tensor:
        """Whole sequences. An empty list given as ``state`` is filled, one entry per block (prefill)."""
        residual = x_BLD.float()
        for block in self.layers:
            assert isinstance(block, Block)
            memory = MixerState(conv=torch.empty(0), ssm=torch.empty(0)) if state is not None else None
            residual = residual + block.mixer(block.norm(residual), segments, seq_idx_BL, memory)
            if state is not None and memory is not None:
                state.append(memory)
        result: Tensor = self.norm(residual)
        return result

    def step(self, x_BD: Tensor, segments: Segments, state: BackboneState) -> Tensor:
        """One position, (B, D) to (B, D); ``state`` moves on."""
        residual = x_BD.float()
        for block, memory in zip(self.layers, state, strict=True):
            assert isinstance(block, Block)
            residual = residual + block.mixer.step(block.norm(residual), segments, memory)
        result: Tensor = self.norm(residual)
        return result
