"""Improved precision and recall of generated pictures (Kynkäänniemi et al., arXiv 1904.06991)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NEIGHBOURS = 3
BLOCK = 1000
"""How many rows of a distance matrix are in memory at a time."""


def precision_recall(
    generated: NDArray[Any], real: NDArray[Any], *, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Share of the generated features (N, d) inside the real set (M, d), and of the real ones inside the generated set.

    A feature is inside a set if its distance to some member is at most that member's distance to its own k-th neighbour
    in the set.

    Raises:
        ValueError: the sets have different widths, or one has too few members for that many neighbours.
    """
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        raise ValueError(f"features have shapes {generated.shape} and {real.shape}, but must have (N, d) and (M, d)")
    if min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"{len(generated)} generated and {len(real)} real features; {neighbours} neighbours need at least "
            f"{neighbours + 1} of each"
        )
    # centred on the mean, so that a common offset costs no precision
    centre = real.astype(np.float64).mean(axis=0)
    generated, real = generated - centre, real - centre
    radii_generated, radii_real = _radii(generated, neighbours), _radii(real, neighbours)
    precise = 0
    recalled = np.zeros(len(real), dtype=bool)
    for start, squared in _distances(generated, real):
        precise += int((squared <= radii_real).any(axis=1).sum())
        recalled |= (squared <= radii_generated[start : start + len(squared), None]).any(axis=0)
    return precise / len(generated), float(recalled.mean())


def _radii(features: Array, neighbours: int) -> Array:
    """Squared distance from each feature to its k-th neighbour among the others."""
    radii = []
    for start, squared in _distances(features, features):
        rows = np.arange(len(squared))
        squared[rows, start + rows] = np.inf
        radii.append(np.partition(squared, neighbours - 1, axis=1)[:, neighbours - 1])
    return np.concatenate(radii)


def _distances(x: Array, y: Array) -> Iterator[tuple[int, Array]]:
    """Yield the squared distances from blocks of rows of ``x`` to all of ``y``, with the index of the block's start."""
    lengths = (y**2).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        yield start, np.clip((block**2).sum(axis=1)[:, None] + lengths - 2 * block @ y.T, 0, None)
