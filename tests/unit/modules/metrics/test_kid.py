import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from modules.metrics.kid import kid, squared_mmd, subset_size


def draws(seed: int, n: int, d: int) -> NDArray[np.float64]:
    return np.random.Generator(np.random.PCG64(seed)).normal(size=(n, d))


class Given(nn.Module):
    """A feature module that takes the pictures for features."""

    num_features = 6

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)[:, :6].double()


def test_by_hand() -> None:
    # kernels: among X (0*2+1)^3 = 1, among Y (1*3+1)^3 = 64, between 1, 1, 27, 343
    assert squared_mmd(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])) == pytest.approx(1 + 64 - 2 * 93)


def test_agrees_with_torchmetrics_on_the_same_features() -> None:
    x, y = (torch.from_numpy(draws(seed, 40, 6)).view(40, 1, 1, 6) for seed in (0, 1))
    y = y * 1.5 + 0.3
    theirs = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=40)
    theirs.set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    # one subset of all features: no chance is left
    mean, deviation = kid(x.flatten(1).numpy(), y.flatten(1).numpy(), subsets=1)
    assert mean == pytest.approx(float(theirs.compute()[0]), rel=1e-6)
    assert deviation == 0


def test_unbiased_for_few_pictures() -> None:
    values = np.array([squared_mmd(draws(2 * i, 12, 4), draws(2 * i + 1, 12, 4)) for i in range(300)])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert values.min() < 0 < values.max()
    shifted = np.mean([squared_mmd(draws(2 * i, 12, 4), draws(2 * i + 1, 12, 4) + 1) for i in range(100)])
    # E of the kernel's difference at distance 1 is far from 0
    assert shifted > 10 * values.std() / np.sqrt(len(values))


def test_subsets_are_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.metrics.kid.SUBSET_SIZE", 20)
    x, y = draws(0, 50, 3), draws(1, 60, 3) + 0.5
    first = kid(x, y, subsets=10)
    np.random.seed(9)
    assert kid(x, y, subsets=10) == first
    assert kid(x, y, subsets=10, seed=1) != first
    assert first[1] > 0
    assert first[0] == pytest.approx(squared_mmd(x, y), abs=4 * first[1])


def test_size_of_a_subset_is_at_most_the_smaller_set() -> None:
    assert subset_size(30_000, 5000) == 1000
    assert subset_size(256, 5000) == 256


@pytest.mark.parametrize("shape", [(1, 3), (5, 4), (5,)])
def test_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features have shapes .*, but must have \(N, d\) and \(M, d\), N, M >= 2"):
        squared_mmd(np.zeros(shape), np.zeros((5, 3)))
