"""Fréchet distance between two sets of pictures.

Features (N, d) of each set are streamed into `Moments`; `frechet` compares two of them. The name of a distance says
which features it uses: ``fid`` those of the Inception network (`modules.metrics.networks`), ``fd_pool`` those computed
here.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Array = NDArray[np.float64]
GRID = 4
POOL_DIM = GRID * GRID * 5
ROUNDING = 1e-3
"""A value that cannot be negative may fall below 0 by this share of the size of what it is computed from."""


def pool_features(images_BCHW: Tensor) -> Tensor:
    """Features without weights, for the embedded data's pictures: uint8 (B, 3, H, W) to float64 (B, 80).

    In each cell of a 4x4 grid: mean red, green and blue (0 to 1), and the mean absolute change of brightness along x
    and along y, times 4 so that edges weigh about as much as colours. They capture where colours are and how busy an
    area is, but no objects.
    """
    pixels = images_BCHW.double() / 255
    grey = pixels.mean(dim=1, keepdim=True)
    along_x = F.pad(grey.diff(dim=3).abs(), (0, 1)) * 4
    along_y = F.pad(grey.diff(dim=2).abs(), (0, 0, 0, 1)) * 4
    return F.adaptive_avg_pool2d(torch.cat([pixels, along_x, along_y], dim=1), GRID).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Streamed mean and covariance in float64: sums of x-c and of (x-c)(x-c)^T about a fixed shift c.

    The sums of two parts add up to the sums of the whole, so ranks can be reduced by addition.
    """

    n: int
    shift: Array
    first: Array
    second: Array

    @classmethod
    def empty(cls, dim: int, shift: Array | None = None) -> Self:
        """Moments of no features. A shift near the data's mean keeps precision if the mean is large; 0 by default."""
        shift = np.zeros(dim) if shift is None else np.asarray(shift, dtype=np.float64)
        return cls(n=0, shift=shift, first=np.zeros(dim), second=np.zeros((dim, dim)))

    def add(self, features: NDArray[Any]) -> Self:
        """These moments with a batch of features (B, d) added.

        Raises:
            ValueError: the width is wrong, or a value is not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.shift):
            raise ValueError(f"features have shape {features.shape}, these moments need (N, {len(self.shift)})")
        centred = features.astype(np.float64) - self.shift
        if not np.isfinite(centred).all():
            raise ValueError("features hold NaN or infinity; the pictures or the extractor are broken")
        return type(self)(
            n=self.n + len(centred),
            shift=self.shift,
            first=self.first + centred.sum(axis=0),
            second=self.second + centred.T @ centred,
        )

    def merge(self, other: Self) -> Self:
        """Moments of both parts together.

        Raises:
            ValueError: the parts have different shifts.
        """
        if not np.array_equal(self.shift, other.shift):
            raise ValueError("moments about different shifts cannot be added; start all parts with the same shift")
        return type(self)(
            n=self.n + other.n, shift=self.shift, first=self.first + other.first, second=self.second + other.second
        )

    @property
    def mean(self) -> Array:
        """(d,)"""
        self._need(1)
        return self.shift + self.first / self.n

    @property
    def covariance(self) -> Array:
        """(d, d), unbiased."""
        self._need(2)
        offset = self.first / self.n
        covariance = (self.second - self.n * np.outer(offset, offset)) / (self.n - 1)
        return np.asarray((covariance + covariance.T) / 2)

    def _need(self, least: int) -> None:
        if self.n < least:
            raise ValueError(f"moments of {self.n} pictures; at least {least} are needed")


def frechet(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """|m1-m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), with symmetric eigenvalues only: no complex numbers, no sqrtm.

    Raises:
        ValueError: an eigenvalue or the distance is negative beyond rounding errors; then an input is not a covariance.
    """
    size1, size2 = float(np.linalg.norm(cov1)), float(np.linalg.norm(cov2))
    values, vectors = np.linalg.eigh((cov1 + cov1.T) / 2)
    root = vectors * np.sqrt(_not_negative(values, size1, "first covariance"))
    inner = root.T @ cov2 @ root
    eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
    shared = np.sqrt(_not_negative(eigenvalues, size1 * size2, "product of the covariances")).sum()
    difference = mean1 - mean2
    parts = np.array([difference @ difference, np.trace(cov1), np.trace(cov2)])
    distance = parts[0] + parts[1] + parts[2] - 2 * shared
    return float(_not_negative(np.asarray(distance), float(np.abs(parts).sum()), "squared distance"))


def _not_negative(values: Array, size: float, name: str) -> Array:
    """``values`` with 0 for negative ones, which must be rounding errors of quantities of this ``size``."""
    if values.min() < -ROUNDING * size:
        raise ValueError(
            f"the {name} has the negative value {values.min():.4g}, so an input is not a covariance. Check the inputs"
        )
    return np.clip(values, 0, None)
