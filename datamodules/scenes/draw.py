"""Scenes of one to three coloured shapes, and their pictures.

A picture has 64 x 64 pixels in four quadrants. An object lies entirely inside its quadrant, so objects never overlap,
and it is always clear which of two is further left or higher.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image, ImageDraw

from datamodules.scenes.dice import Dice

Split = Literal["train", "val"]
Shape = Literal["circle", "square", "triangle", "cross"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
COLORS = {
    "red": (214, 40, 57),
    "orange": (247, 140, 30),
    "yellow": (246, 214, 60),
    "green": (56, 158, 82),
    "blue": (43, 97, 219),
    "purple": (145, 70, 190),
}
BACKGROUNDS = ((247, 247, 245), (226, 236, 246), (246, 234, 216))
DIAMETERS = {"small": 14, "large": 26}
IMAGE_SIZE = 64
CELL = IMAGE_SIZE // 2
MAX_OBJECTS = len(SHAPES) - 1
"""One less than there are shapes, so some shape is always absent and "no" can be the answer for any kind of name."""
_SUPERSAMPLING = 4
_HELD_OUT = 8
"""One in this many scenes belongs to the validation split."""


@dataclass(frozen=True, kw_only=True, order=True)
class Object:
    """One shape; ``x`` and ``y`` are its centre in pixels from the top left."""

    x: int
    y: int
    shape: Shape
    color: str
    size: str

    @property
    def name(self) -> str:
        """Colour and shape, which distinguish it from the scene's other objects."""
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        """Its quadrant, such as "top left"."""
        return f"{'top' if self.y < CELL else 'bottom'} {'left' if self.x < CELL else 'right'}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge in pixels."""
        half = DIAMETERS[self.size] / 2
        return self.x - half, self.y - half, self.x + half, self.y + half

    def left_of(self, other: "Object") -> bool:
        """Whether all of it is further left than all of ``other``."""
        return self.box[2] <= other.box[0]

    def above(self, other: "Object") -> bool:
        """Whether all of it is higher than all of ``other``."""
        return self.box[3] <= other.box[1]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows: objects with different names, from left to right, on a plain background."""

    background: int
    objects: tuple[Object, ...]


def make_scene(seed: int, split: Split, index: int, *, min_objects: int = 1, max_objects: int = MAX_OBJECTS) -> Scene:
    """Scene ``index`` of a split: a pure function of the arguments.

    The content of a scene decides its split, so no validation picture is ever a training picture, for any seeds and
    sizes. A scene that belongs to the other split is drawn again.
    """
    attempt = 0
    while True:
        scene = _draw(Dice("scene", seed, split, index, attempt), min_objects, max_objects)
        if _split(scene) == split:
            return scene
        attempt += 1


def render(scene: Scene) -> Image.Image:
    """Picture of ``scene``: RGB, 64 x 64, edges smoothed."""
    side = IMAGE_SIZE * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    for each in scene.objects:
        _draw_object(pen, each)
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)


def outline(shape: Shape, width: int, height: int) -> Image.Image:
    """A shape that fills a picture of this size: mode L, 255 inside, edges smoothed."""
    side = IMAGE_SIZE * _SUPERSAMPLING
    image = Image.new("L", (side, side))
    _draw_shape(ImageDraw.Draw(image), shape, (0, 0, side - 1, side - 1), 255)
    return image.resize((width, height), Image.Resampling.BOX)


def _draw(dice: Dice, min_objects: int, max_objects: int) -> Scene:
    count = min_objects + dice.below(max_objects - min_objects + 1)
    kinds = dice.sample([(color, shape) for color in COLORS for shape in SHAPES], count)
    cells = dice.sample([(column, row) for column in (0, 1) for row in (0, 1)], count)
    objects = [
        Object(
            # offsets of -2, 0 or 2 pixels: pictures vary, but with few enough 4 x 4 patches for a small codebook
            x=column * CELL + CELL // 2 + 2 * (dice.below(3) - 1),
            y=row * CELL + CELL // 2 + 2 * (dice.below(3) - 1),
            shape=shape,
            color=color,
            size=dice.pick(list(DIAMETERS)),
        )
        for (color, shape), (column, row) in zip(kinds, cells, strict=True)
    ]
    return Scene(background=dice.below(len(BACKGROUNDS)), objects=tuple(sorted(objects)))


def _split(scene: Scene) -> Split:
    digest = hashlib.blake2b(repr(scene).encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "little") % _HELD_OUT == 0 else "train"


def _draw_object(pen: ImageDraw.ImageDraw, each: Object) -> None:
    left, top, right, bottom = (round(edge * _SUPERSAMPLING) for edge in each.box)
    # Pillow includes the last pixel of a figure
    _draw_shape(pen, each.shape, (left, top, right - 1, bottom - 1), COLORS[each.color])


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: Shape, box: tuple[int, int, int, int], fill: int | tuple[int, int, int]
) -> None:
    left, top, right, bottom = box
    match shape:
        case "circle":
            pen.ellipse(box, fill=fill)
        case "square":
            pen.rectangle(box, fill=fill)
        case "triangle":
            pen.polygon(((left, bottom), (right, bottom), ((left + right) / 2, top)), fill=fill)
        case "cross":
            third = (right - left + 1) // 3
            pen.rectangle((left, top + third, right, bottom - third), fill=fill)
            pen.rectangle((left + third, top, right - third, bottom), fill=fill)
