"""Encoder and decoder of LlamaGen's VQ-16 (arXiv 2406.06525), with its names.

Shapes: B images, C channels, H = W pixels of a feature map. Each level but one halves or doubles H. Only the smallest
level has attention.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba.vq_files import check_codebook_size

GROUPS = 32
"""Groups of every norm."""


@dataclass(frozen=True, kw_only=True)
class LlamaGenConfig:
    """Sizes of the tokenizer; the defaults are VQ-16's at 256 pixels."""

    image_size: int = 256
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """One per level, from the pixels inwards."""
    res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16384
    code_dim: int = 8

    @property
    def shrink(self) -> int:
        """Pixels along one side of a code."""
        return 1 << (len(self.channel_multipliers) - 1)

    @property
    def side(self) -> int:
        """Codes along one side of a picture."""
        return self.image_size // self.shrink

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    def check(self) -> None:
        """Raise ValueError if the sizes do not fit together."""
        check_codebook_size(self.codebook_size)
        if self.image_size < 1 or self.image_size % self.shrink:
            raise ValueError(f"image_size={self.image_size} is not a multiple of {self.shrink}, a code's pixels")
        if any(width < 1 or width % GROUPS for width in self.widths):
            raise ValueError(f"channels times channel_multipliers are {self.widths}; all must be multiples of {GROUPS}")


class ResBlock(nn.Module):
    """Norm, swish, convolution, twice. The input is added, through a 1 x 1 convolution if the width changes."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = _norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        h: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of a feature map, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        y: Tensor = x + self.proj_out(attended.reshape(x.shape))
        return y


class Downsample(nn.Module):
    """Halves height and width. Padding is only on the right and at the bottom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Doubles height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if ``attends``, then down- or upsampling."""

    def __init__(self, width_in: int, width_out: int, blocks: int, *, attends: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(width_in if i == 0 else width_out, width_out) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(width_out) for _ in range(blocks if attends else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the next level's input."""
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        y: Tensor = self.upsample(self.downsample(x))
        return y


class Encoder(nn.Module):
    """Pixels (B, 3, S, S) to (B, z_channels, side, side)."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        before = config.channels
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            level = Level(before, width, config.res_blocks, attends=last)
            if not last:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
            before = width
        self.mid = _middle(before)
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        y: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return y


class Decoder(nn.Module):
    """(B, z_channels, side, side) to pixels (B, 3, S, S), with one more residual block per level than the encoder."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            level = Level(before, width, config.res_blocks + 1, attends=i == 0)
            if i < len(widths) - 1:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
            before = width
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.mid(self.conv_in(x))
        for level in self.conv_blocks:
            x = level(x)
        y: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return y


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


def _middle(width: int) -> nn.Sequential:
    return nn.Sequential(ResBlock(width, width), AttentionBlock(width), ResBlock(width, width))
