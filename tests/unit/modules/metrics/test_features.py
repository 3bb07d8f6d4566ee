from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.metrics import features as module
from modules.metrics.features import FeatureSet, collect, take_parts, write_part

ALL = torch.randn(23, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3


def pictures(positions: Sequence[int]) -> Tensor:
    return ALL[list(positions)]


def part(rank: int = 0, world_size: int = 1, batch_size: int = 5) -> FeatureSet:
    sizes = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
    return collect(pictures, lambda x: x * 2, n=len(ALL), width=4, **sizes)


def assert_equal(a: FeatureSet, b: FeatureSet) -> None:
    assert a.moments.n == b.moments.n
    np.testing.assert_allclose(a.moments.mean, b.moments.mean, rtol=1e-12)
    np.testing.assert_allclose(a.moments.covariance, b.moments.covariance, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(a.positions, b.positions)
    np.testing.assert_array_equal(a.kept, b.kept)


def test_a_set_is_its_features() -> None:
    found, features = part(), ALL.numpy() * 2
    np.testing.assert_allclose(found.moments.covariance, np.cov(features.T), rtol=1e-9)
    np.testing.assert_array_equal(found.kept, features.astype(np.float32))
    assert found.positions.tolist() == list(range(23))


@pytest.mark.parametrize("world_size", [2, 3, 30])  # 23 pictures: unequal shares, and ranks without any
def test_unequal_parts_are_the_whole(world_size: int, tmp_path: Path) -> None:
    for rank in range(world_size):
        write_part(tmp_path, {"a": part(rank, world_size, 3), "b": part(rank, world_size, 2)}, rank, world_size)
    merged = take_parts(tmp_path, world_size)
    assert list(merged) == ["a", "b"]
    assert_equal(merged["a"], part())
    assert_equal(merged["b"], part())
    assert list(tmp_path.iterdir()) == []
    assert take_parts(tmp_path, world_size) == {}


def test_features_are_kept_of_an_even_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 6)
    whole = part()
    assert whole.positions.tolist() == [0, 3, 7, 11, 15, 19]
    np.testing.assert_array_equal(whole.kept, (pictures([0, 3, 7, 11, 15, 19]) * 2).numpy().astype(np.float32))
    assert_equal(part(1, 2).merge(part(0, 2)), whole)


def test_a_missing_part_is_an_error(tmp_path: Path) -> None:
    write_part(tmp_path, {"a": part(0, 2)}, 0, 2)
    with pytest.raises(FileNotFoundError, match=r"features-1-of-2.npz"):
        take_parts(tmp_path, 2)
