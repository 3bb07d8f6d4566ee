"""The vision transformer of DINOv2 and SigLIP, in plain torch and with timm's names (see docs/decisions/0006).

Shapes: B images, N patches, P prefix tokens (class and registers), T = P + N tokens, D width, H heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba.config import VitConfig

NORM_EPS = 1e-6
UNUSED = ("norm.*", "attn_pool.*")
"""Names in timm's models that come after the last block."""


class PatchEmbed(nn.Module):
    """Squares of pixels to tokens, row by row. Partial squares at the right and bottom edges are left out."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, N, D): a convolution whose windows do not overlap is one matrix product."""
        size = self.patch_size
        rows, columns = pixels.shape[2] // size, pixels.shape[3] // size
        whole = pixels[:, :, : rows * size, : columns * size]
        squares = whole.reshape(len(pixels), 3, rows, size, columns, size)
        patches_BNK = squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(patches_BNK, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        q, k, v = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class FeedForward(nn.Module):
    """Linear - exact GELU - Linear."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_hidden)
        self.fc2 = nn.Linear(config.mlp_hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class LayerScale(nn.Module):
    """A factor per channel on a branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return x * self.gamma


class VitBlock(nn.Module):
    """Pre-norm: ``x + ls1(attn(norm1(x)))``, then ``x + ls2(mlp(norm2(x)))``."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = FeedForward(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.ls1(self.attn(self.norm1(x_BTD)))
        y: Tensor = x_BTD + self.ls2(self.mlp(self.norm2(x_BTD)))
        return y


class VisionTransformer(nn.Module):
    """Normalised pixels to the patch features after the second-to-last block, without a norm.

    The last block is not built. Only patches have positions; the class token and registers come before them.
    """

    def __init__(self, config: VitConfig, *, patch_size: int, patches: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, config.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width)) if config.registers else None
        self.blocks = nn.ModuleList(VitBlock(config) for _ in range(config.depth - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, N, D)."""
        patches_BND = self.patch_embed(pixels) + self.pos_embed
        prefix = [token.expand(len(pixels), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x_BTD = torch.cat([*prefix, patches_BND], dim=1)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD[:, -patches_BND.shape[1] :]


def unused_names(config: VitConfig) -> tuple[str, ...]:
    """Patterns of timm's names that `VisionTransformer` does not use."""
    return (f"blocks.{config.depth - 1}.*", *UNUSED)


def fit_positions(pos_embed: Tensor, patches: int) -> Tensor:
    """Resize the positions (1, N, D) of a square grid to ``patches``: bicubic and antialiased, like timm."""
    old, new = round(math.sqrt(pos_embed.shape[1])), round(math.sqrt(patches))
    if old == new:
        return pos_embed
    grid = pos_embed.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
