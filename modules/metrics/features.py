"""Summaries of the features of many pictures, computed in parts that can be merged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modules.files import new_file
from modules.metrics.fid import Moments

KEPT = 10_000
"""How many features of a set are kept, for metrics that cannot be streamed: kernel distance, precision and recall."""


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Moments of all pictures' features, and the features of some pictures, spread evenly over the set."""

    moments: Moments
    positions: NDArray[np.int64]
    """(k,): indices of the kept features in the whole set, ascending."""
    kept: NDArray[np.float32]
    """(k, d)"""

    def merge(self, other: Self) -> Self:
        """Merge both parts."""
        positions = np.concatenate([self.positions, other.positions])
        order = np.argsort(positions)
        kept = np.concatenate([self.kept, other.kept])[order]
        return type(self)(moments=self.moments.merge(other.moments), positions=positions[order], kept=kept)


def collect(
    pictures: Callable[[Sequence[int]], Tensor],
    extract: Callable[[Tensor], Tensor],
    *,
    n: int,
    width: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> FeatureSet:
    """This rank's part of a set of ``n`` pictures: every ``world_size``-th, without padding.

    ``pictures`` returns the pictures at given positions, ``extract`` their features (B, width).
    """
    spread = {i * n // KEPT for i in range(KEPT)} if n > KEPT else set(range(n))
    moments, positions, kept = Moments.empty(width), list[int](), [np.zeros((0, width), dtype=np.float32)]
    mine = range(n)[rank::world_size]
    for start in range(0, len(mine), batch_size):
        batch = mine[start : start + batch_size]
        features = extract(pictures(batch)).cpu().numpy()
        moments = moments.add(features)
        chosen = [i for i, position in enumerate(batch) if position in spread]
        positions += [batch[i] for i in chosen]
        kept.append(features[chosen].astype(np.float32))
    return FeatureSet(moments=moments, positions=np.array(positions, dtype=np.int64), kept=np.concatenate(kept))


def write_part(folder: Path, sets: Mapping[str, FeatureSet], rank: int, world_size: int) -> None:
    """Write a rank's parts into ``folder``, for the rank that scores."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, part in sets.items():
        moments = part.moments
        values = (np.array(moments.n), moments.shift, moments.first, moments.second, part.positions, part.kept)
        arrays |= {f"{name}/{i}": value for i, value in enumerate(values)}
    path = _part(folder, rank, world_size)
    with new_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options


def take_parts(folder: Path, world_size: int) -> dict[str, FeatureSet]:
    """Merge the parts that ``world_size`` ranks wrote into ``folder``, and delete the files. Empty if there are none.

    Raises:
        FileNotFoundError: only some ranks wrote their part.
    """
    paths = [_part(folder, rank, world_size) for rank in range(world_size)]
    if not any(path.is_file() for path in paths):
        return {}
    merged = _read(paths[0])
    for path in paths[1:]:  # one at a time: the covariance of 2048 features takes 34 MB
        part = _read(path)
        merged = {name: merged[name].merge(part[name]) for name in merged}
    for path in paths:
        path.unlink()
    return merged


def _part(folder: Path, rank: int, world_size: int) -> Path:
    return folder / f"features-{rank}-of-{world_size}.npz"


def _read(path: Path) -> dict[str, FeatureSet]:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    sets = {}
    for name in dict.fromkeys(key.split("/")[0] for key in arrays):
        n, shift, first, second, positions, kept = (arrays[f"{name}/{i}"] for i in range(6))
        moments = Moments(n=int(n), shift=shift, first=first, second=second)
        sets[name] = FeatureSet(moments=moments, positions=positions, kept=kept)
    return sets
