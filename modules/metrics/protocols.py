"""Three ways to scale pictures to Inception's 299 pixels, used for published COCO numbers. They cannot be compared.

A real picture is first cropped to its central square and scaled to `Protocol.size` with `Protocol.scaling`, as uint8.
Then real and generated pictures, uint8 (B, 3, S, S), go through `Protocol.network_input`. In all three, the image
tokenizer rounds generated pictures to uint8; Show-o's own script truncates instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

INPUT_SIZE = 299


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to prepare pictures."""

    name: str
    size: int
    """Pixels per side of a real picture after crop and scaling."""
    scaling: Image.Resampling
    network_input: Callable[[Tensor], Tensor]
    """uint8 (B, 3, S, S) to float32 (B, 3, 299, 299) in the network's range."""


def bilinear_in_float(images_BCHW: Tensor) -> Tensor:
    """pytorch-fid's: torch's bilinear scaling without antialiasing, values in [-1, 1]."""
    scaled = F.interpolate(
        images_BCHW.float() / 255, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False, antialias=False
    )
    return 2 * scaled - 1


def bicubic_in_bytes(images_BCHW: Tensor) -> Tensor:
    """text2image-benchmark's: Pillow's bicubic scaling, rounded to uint8, values in [-1, 1]."""

    def scale(image: Tensor) -> Tensor:
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        scaled = np.array(picture.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC))
        return torch.from_numpy(scaled).permute(2, 0, 1)

    scaled = torch.stack([scale(image) for image in images_BCHW.cpu()]).to(images_BCHW.device)
    return 2 * (scaled.float() / 255) - 1


def bicubic_in_float(images_BCHW: Tensor) -> Tensor:
    """clean-fid's: Pillow's bicubic scaling of each colour in float, clipped to [0, 255], then (x - 128) / 128."""

    def scale(colour: Tensor) -> Tensor:
        picture = Image.fromarray(colour.float().numpy())
        scaled = picture.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(scaled)).clamp(0, 255)

    colours = [scale(colour) for colour in images_BCHW.cpu().flatten(0, 1)]
    scaled = torch.stack(colours).view(len(images_BCHW), 3, INPUT_SIZE, INPUT_SIZE)
    return (scaled.to(images_BCHW.device) - 128) / 128


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # U-ViT: the known parts of the paper's code suggest this one
        Protocol(name="uvit", size=256, scaling=Image.Resampling.LANCZOS, network_input=bilinear_in_float),
        # Show-o
        Protocol(name="t2ib", size=INPUT_SIZE, scaling=Image.Resampling.BICUBIC, network_input=bicubic_in_bytes),
        # LlamaGen, GigaGAN
        Protocol(name="cleanfid", size=256, scaling=Image.Resampling.LANCZOS, network_input=bicubic_in_float),
    )
}
"""Name to protocol."""
