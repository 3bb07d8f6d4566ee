"""Optimizer and learning-rate schedule (paper, Table 5, and the released settings)."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up, then cosine decay to ``min_lr_ratio`` of the peak."""

    lr: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """On matrices alone; 0: none."""
    warmup_steps: int = 0
    """Steps up to the peak; 0: none."""
    min_lr_ratio: float = 0.01
    """Last learning rate, as a share of the peak."""
    clip_grad_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = []
        if not self.lr > 0:  # also catches NaN
            found.append(f"optim.lr={self.lr} must be above 0; the paper uses 1e-3 (MMU), 8e-4 (T2I), 1e-4 (unified)")
        found += [
            f"optim.{name}={getattr(self, name)} must be 0 or more; 0 turns it off"
            for name in ("weight_decay", "warmup_steps", "clip_grad_norm")
            if getattr(self, name) < 0
        ]
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"optim.betas={list(self.betas)} must lie in [0, 1); the paper uses [0.9, 0.95]")
        if not self.eps > 0:
            found.append(f"optim.eps={self.eps} must be above 0; the usual value is 1e-8")
        if not 0 <= self.min_lr_ratio <= 1:
            found.append(f"optim.min_lr_ratio={self.min_lr_ratio} must lie in [0, 1]; the released value is 0.01")
        return found


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: only to matrices, never to A_log, D, dt_bias, norms or biases.

    Decay on A_log, D or dt_bias drags the state-space dynamics towards one fixed time scale.
    """
    return parameter.dim() >= 2 and not name.endswith("_positions")


def build_optimizer(model: nn.Module, config: OptimConfig, max_steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over the trained parameters of ``model``, in two named groups, and its schedule per optimizer step."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"name": "decay", "params": [p for n, p in trained if decays(n, p)], "weight_decay": config.weight_decay},
        {"name": "no_decay", "params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )
    return optimizer, LambdaLR(optimizer, partial(lr_factor, config=config, max_steps=max_steps))


def lr_factor(step: int, *, config: OptimConfig, max_steps: int) -> float:
    """Share of the peak learning rate for the step after ``step`` finished ones."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
