"""Pictures of every kind that data sets hold, and an image tokenizer of grey levels."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modules.omnimamba.vq import PatchKMeans

GREYS = (0, 60, 120, 180, 240)
WIDTH, HEIGHT = 48, 32


def encoded(image: Image.Image, kind: str, **values) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **values)
    return file.getvalue()


def halves(left: int = 60, right: int = 180) -> Image.Image:
    """Grey, dark on the left and light on the right."""
    pixels = np.full((HEIGHT, WIDTH), left, np.uint8)
    pixels[:, WIDTH // 2 :] = right
    return Image.fromarray(pixels)


def usable() -> dict[str, bytes]:
    """Pictures that show `halves`, by file name; those that show something else have it in the name."""
    grey = halves()
    colour = grey.convert("RGB")
    rgba = grey.convert("RGBA")
    rgba.putalpha(255)
    clear = Image.new("RGBA", (WIDTH, HEIGHT))
    clear.paste((0, 0, 0, 255), (0, 0, WIDTH // 2, HEIGHT))
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "plain.jpg": encoded(colour, "JPEG", quality=95),
        "grey.jpg": encoded(grey, "JPEG", quality=95),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG", quality=95),
        "turned.jpg": encoded(colour.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=turned),
        "several.jpg": encoded(colour, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))], quality=95),
        "unicode ünd Leerzeichen 犬.jpg": encoded(colour, "JPEG", quality=95),
        "l.png": encoded(grey, "PNG"),
        "la.png": encoded(grey.convert("LA"), "PNG"),
        "p.png": encoded(colour.quantize(16), "PNG"),
        "rgba.png": encoded(rgba, "PNG"),
        "sixteen.png": encoded(sixteen, "PNG"),
        "black_and_white.png": encoded(halves(0, 255).convert("1"), "PNG"),
        "black_and_clear.png": encoded(clear, "PNG"),
        "named_wrongly.jpg": encoded(colour, "PNG"),
        "photo.webp": encoded(colour, "WEBP", lossless=True),
        "old.bmp": encoded(colour, "BMP"),
        "moving.gif": encoded(grey, "GIF", save_all=True, append_images=[halves(0, 0)]),
    }


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def broken() -> dict[str, tuple[bytes, str]]:
    """Files that hold no picture, and how the reason for that begins."""
    good = usable()
    damaged = bytearray(good["l.png"])
    damaged[60] ^= 255
    return {
        "truncated.jpg": (good["plain.jpg"][:-80], "image does not decode: "),
        "truncated.png": (good["rgba.png"][:-40], "image does not decode: "),
        "damaged.png": (bytes(damaged), "image does not decode: "),
        "empty.jpg": (b"", "image is empty: "),
        "page.jpg": (b"<html>404</html>", "image does not decode: "),
        "bomb.png": (bomb(), "image does not decode: "),
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with all of them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, content in usable().items():
        (folder / name).write_bytes(content)
    for name, (content, _) in broken().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def vq(tmp_path: Path) -> Path:
    """Four codes a picture of 8 x 8: the grey level of each quarter."""
    path = tmp_path / "vq.safetensors"
    levels = torch.tensor(GREYS, dtype=torch.uint8)
    PatchKMeans(levels[:, None].expand(len(GREYS), 48).contiguous(), image_size=8, patch_size=4).save(path)
    return path
