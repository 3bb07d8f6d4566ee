"""Reads the objects of a picture back from its pixels, to tell whether a drawn scene shows what its caption names.

An object is a connected area of palette colours. Its colour is the most frequent in the area, its shape the one whose
outline covers the area best, its size and place those of the box around it. What looks like no shape has none.
Shapes: B pictures, H = W pixels of a side, C classes of colour: backgrounds, then colours.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.scenes.draw import BACKGROUNDS, CELL, COLORS, DIAMETERS, SHAPES, Shape, outline

LEAST_AREA = 24
"""Areas of fewer pixels are specks; the smallest shape, a small triangle, has about 98."""
LEAST_OVERLAP = 0.75
"""Least intersection over union with an outline. Shapes of the scenes reach 0.84 or more; a circle in a square 0.79."""
WIDEST = 4 / 3
"""Largest ratio of the sides of the box around a shape: all shapes are as wide as high."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An object that a picture shows. ``shape`` is empty if it looks like none; edges are in pixels."""

    color: str
    shape: str
    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> str:
        """The size that is closer."""
        side = (self.right - self.left + self.bottom - self.top) / 2
        return min(DIAMETERS, key=lambda size: abs(DIAMETERS[size] - side))

    @property
    def place(self) -> str:
        """The quadrant of its centre, such as "top left"."""
        vertical = "top" if self.top + self.bottom < 2 * CELL else "bottom"
        return f"{vertical} {'left' if self.left + self.right < 2 * CELL else 'right'}"


def look(pictures: Tensor) -> list[list[Seen]]:
    """The objects of each of ``pictures``, uint8 (B, 3, H, W), the largest first."""
    palette_C3 = torch.tensor([*BACKGROUNDS, *COLORS.values()], dtype=torch.int32)
    distances_BCHW = (pictures.cpu().int()[:, None] - palette_C3[None, :, :, None, None]).square().sum(2)
    areas_BHW = _areas(distances_BCHW.argmin(1) >= len(BACKGROUNDS))
    return [_objects(distances, areas) for distances, areas in zip(distances_BCHW, areas_BHW, strict=True)]


def _areas(inside_BHW: Tensor) -> Tensor:
    """A number for every connected area, which its pixels share; 0 outside. Pixels also connect at their corners."""
    numbers = torch.arange(1, inside_BHW[0].numel() + 1, dtype=torch.float32).view(inside_BHW.shape[1:])
    areas = inside_BHW * numbers
    while True:
        spread = F.max_pool2d(areas[:, None], 3, stride=1, padding=1)[:, 0] * inside_BHW
        if torch.equal(spread, areas):
            return areas
        areas = spread


def _objects(distances_CHW: Tensor, areas_HW: Tensor) -> list[Seen]:
    """The objects in the areas, given the squared distance of each pixel to each palette colour."""
    nearest_HW = distances_CHW.argmin(0)
    background = int(nearest_HW[areas_HW == 0].mode().values) if bool((areas_HW == 0).any()) else 0
    found = []
    for number in torch.unique(areas_HW[areas_HW > 0]):
        area_HW = areas_HW == number
        color = int(nearest_HW[area_HW].mode().values)
        # a smoothed edge between two colours may be nearest to a third
        inside_HW = area_HW & (distances_CHW[color] < distances_CHW[background])
        if (pixels := int(inside_HW.sum())) >= LEAST_AREA:
            found.append((pixels, _object(list(COLORS)[color - len(BACKGROUNDS)], inside_HW)))
    return [seen for _, seen in sorted(found, key=lambda each: -each[0])]


def _object(color: str, mask_HW: Tensor) -> Seen:
    rows, columns = mask_HW.nonzero().unbind(1)
    top, bottom, left, right = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    shape = _shape(mask_HW[top:bottom, left:right])
    return Seen(color=color, shape=shape, left=left, top=top, right=right, bottom=bottom)


def _shape(mask_HW: Tensor) -> str:
    height, width = mask_HW.shape
    if max(height, width) > WIDEST * min(height, width):
        return ""
    overlaps: dict[str, float] = {}
    for shape in SHAPES:
        whole = _outline(shape, width, height)
        overlaps[shape] = float((mask_HW & whole).sum() / (mask_HW | whole).sum())
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= LEAST_OVERLAP else ""


@cache
def _outline(shape: Shape, width: int, height: int) -> Tensor:
    """Pixels that are at least half inside, bool (height, width)."""
    return torch.from_numpy(np.array(outline(shape, width, height)) >= 128)
