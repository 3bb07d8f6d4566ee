import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from modules.metrics.fid import POOL_DIM, Moments, frechet, pool_features


def draws(seed: int, n: int, d: int) -> NDArray[np.float64]:
    return np.random.Generator(np.random.PCG64(seed)).normal(size=(n, d))


def of(features: NDArray[np.float64]) -> Moments:
    return Moments.empty(features.shape[1]).add(features)


def distance(a: Moments, b: Moments) -> float:
    return frechet(a.mean, a.covariance, b.mean, b.covariance)


def test_gaussians_in_closed_form() -> None:
    # commuting covariances: |m1-m2|^2 + sum (sqrt(a)-sqrt(b))^2
    mean1, mean2 = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0])
    cov1, cov2 = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 4.0, 1.0])
    assert frechet(mean1, cov1, mean2, cov2) == pytest.approx(5 + 1 + 0 + 4)
    turn = np.linalg.qr(draws(0, 3, 3))[0]
    turned = frechet(turn @ mean1, turn @ cov1 @ turn.T, turn @ mean2, turn @ cov2 @ turn.T)
    assert turned == pytest.approx(10)


def test_covariances_that_do_not_commute() -> None:
    # for 2x2 matrices tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), with M = S1 S2
    cov1, cov2 = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[3.0, -1.0], [-1.0, 1.0]])
    product = cov1 @ cov2
    shared = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(cov1) + np.trace(cov2) - 2 * shared
    assert frechet(np.zeros(2), cov1, np.zeros(2), cov2) == pytest.approx(expected)
    assert frechet(np.zeros(2), cov2, np.zeros(2), cov1) == pytest.approx(expected)


def test_one_dimension() -> None:
    assert frechet(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[1.0]])) == pytest.approx(4 + 1)


def test_streamed_moments_are_numpys() -> None:
    features = draws(1, 101, 7) * 3 + 5
    streamed = Moments.empty(7)
    for start in range(0, 101, 10):
        streamed = streamed.add(features[start : start + 10])
    assert streamed.n == 101
    np.testing.assert_allclose(streamed.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(features.T), rtol=1e-10, atol=1e-12)


def test_unequal_parts_merge_to_the_whole() -> None:
    features = draws(2, 60, 5) + 2
    merged = of(features[:7]).merge(of(features[7:])).merge(Moments.empty(5))
    whole = of(features)
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-10, atol=1e-12)


def test_a_shift_keeps_digits_under_a_large_mean() -> None:
    features = draws(3, 500, 3)
    shifted = Moments.empty(3, shift=np.full(3, 1e7)).add(features + 1e7)
    np.testing.assert_allclose(shifted.covariance, np.cov(features.T), atol=1e-7)


def test_a_set_against_itself_is_zero() -> None:
    moments = of(draws(4, 200, 12))
    assert 0 <= distance(moments, moments) < 1e-9


def test_more_dimensions_than_pictures_agree_with_the_nuclear_norm() -> None:
    x, y = draws(5, 16, 100), draws(6, 24, 100) * 1.5 + 0.2
    x_centred, y_centred = x - x.mean(axis=0), y - y.mean(axis=0)
    shared = np.linalg.norm(x_centred @ y_centred.T, "nuc") / np.sqrt(15 * 23)
    mean_part = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    expected = mean_part + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * shared
    assert distance(of(x), of(y)) == pytest.approx(expected, rel=1e-6)
    assert distance(of(x), of(x)) < 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_scaled_features_have_scaled_distances(scale: float) -> None:
    """Rounding errors grow with the features, also where few pictures leave most eigenvalues at 0."""
    same = of(draws(7, 40, 300) * scale)
    assert distance(same, same) < 1e-6 * scale**2 * 300
    x, y = draws(8, 16, 100), draws(9, 24, 100) * 1.5 + 0.2
    assert distance(of(x * scale), of(y * scale)) == pytest.approx(scale**2 * distance(of(x), of(y)), rel=1e-6)
    mean, cov1, cov2 = np.zeros(2), np.diag([1.0, 4.0]), np.diag([9.0, 1.0])
    known = scale**2 * ((1 - 3) ** 2 + (2 - 1) ** 2)
    assert frechet(mean, cov1 * scale**2, mean, cov2 * scale**2) == pytest.approx(known)
    for bad in (np.diag([1.0, -0.1]), np.array([[1.0, 2.0], [2.0, 1.0]])):  # -0.1 and -1 are no rounding errors
        with pytest.raises(ValueError, match="so an input is not a covariance"):
            frechet(mean, bad * scale**2, mean, cov2 * scale**2)
        with pytest.raises(ValueError, match="so an input is not a covariance"):
            frechet(mean, cov2 * scale**2, mean, bad * scale**2)


@pytest.mark.parametrize(("n", "known"), [(400, 5.540), (1000, 2.226), (10_000, 0.2213)])
def test_sampling_bias_is_the_known_one(n: int, known: float) -> None:
    """Of samples of n from N(0, I_64); the known values are the specification's."""
    d = 64
    samples = [of(draws(seed, n, d)) for seed in range(8)]
    between = np.mean([distance(a, b) for a, b in zip(samples[::2], samples[1::2], strict=True)])
    assert between == pytest.approx(known, rel=0.04)
    assert between == pytest.approx(2 * d / n + d * (d + 1) / (2 * (n - 1)), rel=0.04)
    exact = np.mean([frechet(one.mean, one.covariance, np.zeros(d), np.eye(d)) for one in samples])
    assert exact == pytest.approx(d / n + d * (d + 1) / (4 * (n - 1)), rel=0.05)


def test_refuses_what_is_no_covariance() -> None:
    zero, one = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match="first covariance has the negative value -1"):
        frechet(zero, np.diag([1.0, -1.0]), zero, one)
    with pytest.raises(ValueError, match="product of the covariances has the negative value"):
        frechet(zero, one, zero, np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="squared distance has the negative value"):
        frechet(zero, np.zeros((2, 2)), zero, np.array([[0.0, 2.0], [2.0, -1.0]]))


def test_moments_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"features have shape \(3, 4\), these moments need \(N, 5\)"):
        Moments.empty(5).add(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        Moments.empty(1).add(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="different shifts"):
        Moments.empty(1).merge(Moments.empty(1, shift=np.ones(1)))
    with pytest.raises(ValueError, match="moments of 0 pictures; at least 1"):
        _ = Moments.empty(1).mean
    with pytest.raises(ValueError, match="moments of 1 pictures; at least 2"):
        _ = of(np.zeros((1, 1))).covariance


def test_pool_features_of_a_picture_by_hand() -> None:
    # left half red, right half black, 8x8: cells of 2x2 pixels
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, 0, :, :4] = 255
    features = pool_features(image).view(5, 4, 4)
    red, green, _, along_x, along_y = features
    assert red[0].tolist() == [1, 1, 0, 0]
    assert green.abs().sum() == along_y.abs().sum() == 0
    # the step lies between columns 3 and 4: brightness 1/3, times 4, on half the pixels of the second cell
    assert along_x[0].tolist() == pytest.approx([0, 4 / 3 / 2, 0, 0])


def test_pool_features_do_not_depend_on_the_batch_and_take_any_size() -> None:
    images = torch.randint(0, 256, (5, 3, 30, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = pool_features(images)
    assert together.shape == (5, POOL_DIM)
    assert together.dtype == torch.float64
    for i in range(5):
        assert torch.equal(pool_features(images[i : i + 1])[0], together[i])


class Given(nn.Module):
    """A feature module that takes the pictures for features."""

    num_features = 6

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)[:, :6].double()


def test_agrees_with_torchmetrics_on_the_same_features() -> None:
    real, fake = draws(20, 300, 6), draws(21, 200, 6) @ np.tri(6) + 0.5
    theirs = FrechetInceptionDistance(feature=Given())
    theirs.set_dtype(torch.float64)
    for features, is_real in ((real, True), (fake, False)):
        theirs.update(torch.from_numpy(features).view(-1, 1, 1, 6), real=is_real)
    assert distance(of(fake), of(real)) == pytest.approx(float(theirs.compute()), rel=1e-6)
