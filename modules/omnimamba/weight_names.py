"""Checks third-party weights against the needed names: every name must have a place, or there is an error."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each name."""


@dataclass(frozen=True)
class NamesReport:
    """Names of ``origin``: those that are loaded, those unused on purpose, and optional ones that are missing."""

    origin: str
    loaded: tuple[str, ...]
    unused: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [f"{len(self.loaded)} tensors from {self.origin}"]
        for title, names in (("unused on purpose", self.unused), ("not in it, left as they are", self.absent)):
            if names:
                lines.append(f"{len(names)} {title}: {shortened(names)}")
        return lines


def match_names(
    origin: str, given: Shapes, needed: Shapes, *, unused: Sequence[str] = (), optional: Sequence[str] = ()
) -> NamesReport:
    """Find a place for each name of ``given``.

    ``unused`` are patterns of names that may be left over; ``optional`` are patterns of names that may be missing.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; all of them are named.
    """
    found = [name for name in needed if name in given]
    absent = [name for name in needed if name not in given]
    missing = [name for name in absent if not _fits(name, optional)]
    over = [name for name in given if name not in needed]
    unexpected = [name for name in over if not _fits(name, unused)]
    misshapen = [
        f"{name} {_shape(given[name])} instead of {_shape(needed[name])}"
        for name in found
        if tuple(given[name]) != tuple(needed[name])
    ]
    problems = [
        f"{len(names)} {title}: {', '.join(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ValueError(
            f"the weights in {origin} do not fit. {'; '.join(problems)}. "
            "Name the weights of this model, or set the model's sizes to theirs"
        )
    return NamesReport(origin, tuple(found), tuple(over), tuple(absent))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shortened(names: Iterable[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "()"
