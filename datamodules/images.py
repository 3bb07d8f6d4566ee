"""Pictures from disk to the uint8 tensors that the model and the image tokenizer take."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def read_image(path: Path) -> Image.Image:
    """The picture in ``path``, decoded, in RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not decode.
    """
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist; check the folder that holds the images")
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"image {path} does not decode ({error}); replace the file") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture the way a person sees it: turned as its EXIF orientation says, in RGB.

    Sixteen-bit grey is scaled to eight bits; Pillow's own conversion would clip it to white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square, scaled to ``size`` pixels (LANCZOS): what the image tokenizer is trained on."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # cropped first: resize(box=...) would let pixels outside the square in at its edges
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)


def squeeze(image: Image.Image, size: int) -> Image.Image:
    """The whole picture, scaled to a square of ``size`` pixels whatever its aspect (bicubic): what MMU looks at."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (3, H, W) as a picture."""
    return Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy())
