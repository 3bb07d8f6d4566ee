"""Kernel distance between two sets of features (KID, arXiv 1801.01401): unbiased, so suited to few pictures."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SUBSETS, SUBSET_SIZE = 100, 1000


def squared_mmd(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Unbiased squared maximum mean discrepancy of features (N, d) and (M, d), with kernel (x.y/d + 1)^3.

    Its expectation is 0 for two samples of one distribution, so it can be negative.

    Raises:
        ValueError: a set has fewer than two features, or the sets have different widths.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features have shapes {x.shape} and {y.shape}, but must have (N, d) and (M, d), N, M >= 2")
    x, y = x.astype(np.float64), y.astype(np.float64)

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    def among(a: NDArray[np.float64]) -> float:
        values = kernel(a, a)
        return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))

    return among(x) + among(y) - 2 * float(kernel(x, y).mean())


def subset_size(n: int, m: int) -> int:
    """Number of features in a subset: 1000, or all of the smaller set if it has fewer."""
    return min(SUBSET_SIZE, n, m)


def kid(x: NDArray[Any], y: NDArray[Any], *, subsets: int = SUBSETS, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of `squared_mmd` over random subsets of both sets; the same for the same seed.

    Raises:
        ValueError: see `squared_mmd`.
    """
    size, draw = subset_size(len(x), len(y)), np.random.Generator(np.random.PCG64(seed))
    values = [
        squared_mmd(x[draw.permutation(len(x))[:size]], y[draw.permutation(len(y))[:size]]) for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))
