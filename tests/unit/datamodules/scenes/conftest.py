"""A reader of pictures that knows nothing of the code that drew them."""

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image


class Seen(NamedTuple):
    """An object found in the pixels; ``x`` and ``y`` are its first and last column and row."""

    color: str
    shape: str
    size: str
    x: tuple[int, int]
    y: tuple[int, int]


HUES = {"red": (340, 365), "orange": (20, 40), "yellow": (44, 60), "green": (120, 150), "blue": (210, 230)}


def _color(rgb: np.ndarray) -> str:
    hue = colorsys.rgb_to_hsv(*(rgb / 255))[0] * 360
    hue = hue + 360 if hue < 10 else hue
    return next((name for name, (low, high) in HUES.items() if low <= hue < high), "purple")


def _shape(mask: np.ndarray) -> str:
    """By which of the corners and edge middles of its bounding box are filled."""
    last = len(mask) - 2
    corners_above, corners_below = mask[1, 1] and mask[1, last], mask[last, 1] and mask[last, last]
    if corners_above:
        return "square"
    if corners_below:
        return "triangle"
    return "circle" if mask[len(mask) // 4, len(mask) // 4] else "cross"


def _look(picture: Image.Image) -> list[Seen]:
    pixels = np.asarray(picture.convert("RGB")).astype(float)
    spread = pixels.max(2) - pixels.min(2)
    found = []
    for top in (0, 32):
        for left in (0, 32):
            mask = spread[top : top + 32, left : left + 32] > 75
            if mask.any():
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                middle = pixels[top : top + 32, left : left + 32][mask]
                found.append(
                    Seen(
                        color=_color(np.median(middle, axis=0)),
                        shape=_shape(box),
                        size="small" if box.shape[1] < 20 else "large",
                        x=(left + columns[0], left + columns[-1]),
                        y=(top + rows[0], top + rows[-1]),
                    )
                )
    return found


@pytest.fixture
def look() -> Callable[[Image.Image], list[Seen]]:
    return _look
