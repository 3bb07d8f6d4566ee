"""The words for what a scene shows: names of objects, relations between them, captions."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from datamodules.scenes.draw import COLORS, DIAMETERS, SHAPES, Object, Scene

NAMES = {
    "shape": tuple(str(shape) for shape in SHAPES),
    "color": tuple(f"{color} object" for color in COLORS),
    "both": tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES),
}
"""Names that questions can ask for, by kind. Each object has one name of each kind."""

RELATIONS: dict[str, Callable[[Object, Object], bool]] = {
    "left of": lambda a, b: a.left_of(b),
    "right of": lambda a, b: b.left_of(a),
    "above": lambda a, b: a.above(b),
    "below": lambda a, b: b.above(a),
}
"""Relations, by the words between the first and the second object."""
NUMBERS = ("no objects", "one object", "two objects", "three objects")
"""How a number of objects is written out."""

_NAMED = re.compile(
    rf"\ban? (?:({'|'.join(DIAMETERS)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b"
    r"(?: at the ((?:top|bottom) (?:left|right)))?"
)


@dataclass(frozen=True, kw_only=True)
class Named:
    """An object as a caption names it; what the caption does not say is empty."""

    color: str
    shape: str
    size: str
    place: str


def named(caption: str) -> list[Named]:
    """The objects that a caption of a scene names, in its order. How they lie to each other is left out."""
    found = [match.groups(default="") for match in _NAMED.finditer(caption)]
    return [Named(color=color, shape=shape, size=size, place=place) for size, color, shape, place in found]


def article(name: str) -> str:
    """``name`` with "a" or "an" before it."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def present_names(scene: Scene) -> list[str]:
    """All names of all objects of ``scene``, in a fixed order."""
    own = {name for each in scene.objects for name in (each.shape, f"{each.color} object", each.name)}
    return [name for kind in NAMES.values() for name in kind if name in own]


def presence_text(name: str) -> str:
    """The presence question about ``name``, in POPE's words."""
    return f"Is there {article(name)} in the image?"


def true_relations(a: Object, b: Object) -> list[str]:
    """Names of the relations of ``a`` to ``b``: one, or two if they lie diagonally."""
    return [name for name, holds in RELATIONS.items() if holds(a, b)]


def captions(scene: Scene) -> list[str]:
    """Five different true captions: plain, with places, with relations, with the number of objects."""
    phrases = [article(f"{each.size} {each.color} {each.shape}") for each in scene.objects]
    placed = [f"{phrase} at the {each.place}" for phrase, each in zip(phrases, scene.objects, strict=True)]
    number = NUMBERS[len(phrases)]
    if len(phrases) == 1:
        return [
            phrases[0],
            placed[0],
            f"{number}: {phrases[0]}",
            f"{number}: {placed[0]}",
            f"the image shows {phrases[0]}",
        ]
    return [
        _listing(phrases),
        _listing(placed),
        _related(scene, 0, phrases),
        _related(scene, len(phrases) - 1, phrases),
        f"{number}: {_listing(phrases)}",
    ]


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _related(scene: Scene, subject: int, phrases: list[str]) -> str:
    """The subject's relation to each other object: "a large red circle left of ... and above ..."."""
    rest = [number for number in range(len(phrases)) if number != subject]
    parts = [f"{true_relations(scene.objects[subject], scene.objects[n])[0]} {phrases[n]}" for n in rest]
    return f"{phrases[subject]} {_listing(parts)}"
