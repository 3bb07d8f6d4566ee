"""Content: do the objects in a picture match those that its caption names.

Counted per picture, then summed; pictures with more objects weigh more, as in a share of objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import sqrt
from typing import Protocol

ASPECTS = ("color", "shape", "size", "place")
MOST_SEEN = 6
"""Of a picture with more objects, only the first ones are matched; it is wrong anyway."""
Tally = Mapping[str, tuple[int, int]]
"""For each metric: how many are right in a picture, out of how many."""


class Thing(Protocol):
    """An object with its aspects as words; an empty word says nothing."""

    @property
    def color(self) -> str:
        """Such as "red"."""

    @property
    def shape(self) -> str:
        """Such as "circle"."""

    @property
    def size(self) -> str:
        """Such as "large"."""

    @property
    def place(self) -> str:
        """Such as "top left"."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Shares, their standard errors, and how many objects or pictures stand behind each."""

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    counts: dict[str, int]


def tally(named: Sequence[Thing], seen: Sequence[Thing]) -> Tally:
    """Compare the objects that a caption names with those that its picture shows.

    Each named object is matched with another seen one, so that most aspects agree.

    ``color shape size place``: named objects with that aspect right, of those whose caption says it. ``content``:
    objects with colour, shape and, where named, place right. ``content_all``: whether this holds for every named
    object, and there is no other. ``number``: whether as many objects are seen as named.

    Raises:
        ValueError: the caption names no object.
    """
    if not named:
        raise ValueError("a caption that names no object has no content to score; choose other captions")
    right = _matched(named, seen[:MOST_SEEN])
    counts = {
        aspect: (sum(aspect in found for found in right), sum(bool(getattr(one, aspect)) for one in named))
        for aspect in ASPECTS
    }
    whole = [
        {"color", "shape", *(["place"] if one.place else [])} <= found for one, found in zip(named, right, strict=True)
    ]
    same = len(seen) == len(named)
    return {
        "content": (sum(whole), len(named)),
        "content_all": (int(all(whole) and same), 1),
        **counts,
        "number": (int(same), 1),
    }


def score(tallies: Sequence[Tally]) -> Score:
    """The share of each metric over all pictures. One that no caption names is left out.

    Standard errors are those of a ratio of sums over independent pictures.

    Raises:
        ValueError: there is no picture.
    """
    if not tallies:
        raise ValueError("no pictures to score; choose at least one caption")
    metrics, errors, counts = {}, {}, {}
    for name in tallies[0]:
        right, of = ([each[name][part] for each in tallies] for part in (0, 1))
        total = sum(of)
        if total:
            share = sum(right) / total
            metrics[name], counts[name] = share, total
            errors[name] = sqrt(sum((r - share * n) ** 2 for r, n in zip(right, of, strict=True))) / total
    return Score(metrics=metrics, standard_errors=errors, counts=counts)


def _matched(named: Sequence[Thing], seen: Sequence[Thing]) -> list[set[str]]:
    """The right aspects of each named object under the matching with the most of them."""
    agreeing = [[_agreeing(one, other) for other in seen] + len(named) * [set[str]()] for one in named]
    places = range(len(seen) + len(named))
    best = max(
        permutations(places, len(named)), key=lambda order: sum(len(agreeing[i][j]) for i, j in enumerate(order))
    )
    return [agreeing[i][j] for i, j in enumerate(best)]


def _agreeing(one: Thing, other: Thing) -> set[str]:
    return {aspect for aspect in ASPECTS if getattr(one, aspect) and getattr(one, aspect) == getattr(other, aspect)}
