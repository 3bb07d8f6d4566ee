"""Vision encoders: pixels to the frozen features that the projector turns into MMU positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba.config import VisionConfig


class PatchVision(nn.Module):
    """Non-overlapping patches of normalised pixels, row by row; nothing to train, nothing to load."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, S, S) to features (B, patches, 3 * patch_size**2).

        Raises:
            ValueError: the images are not S pixels high and wide.
        """
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images of shape {tuple(images.shape[1:])} given, model.vision.image_size={size} needs "
                f"(3, {size}, {size}); resize them when they are read"
            )
        pixels = images.float()
        mean, std = pixels.mean((2, 3), keepdim=True), pixels.std((1, 2, 3), keepdim=True)
        pixels = (pixels - mean) / (std + 1)
        return F.unfold(pixels, self.config.patch_size, stride=self.config.patch_size).transpose(1, 2)


class GivenFeatures(nn.Module):
    """Takes the place of an encoder where the samples bring features of their own."""

    def forward(self, images: Tensor) -> Tensor:
        """Never right to call.

        Raises:
            ValueError: always; it says what to do.
        """
        raise ValueError(
            "model.vision.kind=features has no encoder to look at images with; give features, or choose another kind"
        )


def build_vision(config: VisionConfig) -> nn.Module:
    """The encoder that ``config.kind`` names."""
    return PatchVision(config) if config.kind == "patches" else GivenFeatures()
