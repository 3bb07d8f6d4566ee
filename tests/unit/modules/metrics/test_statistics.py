from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.metrics.statistics import Statistics, read_statistics

MU, SIGMA = np.arange(3.0), np.diag([1.0, 2.0, 3.0])


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "reference.npz"
    kept = np.ones((2, 3), dtype=np.float32)
    Statistics(mean=MU, covariance=SIGMA, n=7, kept=kept, about={"extractor": "a"}).write(path)
    found = read_statistics(path, 3, {"extractor": "a"})
    np.testing.assert_array_equal(found.mean, MU)
    np.testing.assert_array_equal(found.covariance, SIGMA)
    assert found.kept is not None
    np.testing.assert_array_equal(found.kept, kept)
    assert (found.n, found.about) == (7, {"extractor": "a"})
    assert [other.name for other in path.parent.iterdir()] == ["reference.npz"]


def test_published_files_hold_moments_only(tmp_path: Path) -> None:
    path = save(tmp_path / "published.npz", mu=MU.astype(np.float32), sigma=SIGMA)
    found = read_statistics(path, 3, {"extractor": "inception"})
    assert (found.n, found.kept, found.about) == (None, None, {})
    assert found.mean.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MU, "cov": SIGMA}, "is missing sigma, found mu, cov; expected mu and sigma"),
        ({"mu": MU, "sigma": np.eye(4)}, r"mu of shape \(3,\) and sigma of shape \(4, 4\).* need \(3,\) and \(3, 3\)"),
        ({"mu": MU[None], "sigma": SIGMA}, r"mu of shape \(1, 3\)"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "holds NaN or infinity"),
        ({"mu": MU, "sigma": -SIGMA}, "is not symmetric with a diagonal of at least 0, so it is not a covariance"),
        ({"mu": MU, "sigma": np.tri(3)}, "so it is not a covariance"),
        ({"mu": np.array([None] * 3), "sigma": SIGMA}, "is not an npz file of plain arrays"),
        (
            {"mu": MU, "sigma": SIGMA, "about": '{"fid_protocol": "uvit"}'},
            "was made with fid_protocol=uvit, expected t2ib; they cannot be compared",
        ),
    ],
)
def test_refuses_other_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_statistics(path, 3, {"fid_protocol": "t2ib"})


def test_refuses_what_is_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "broken.npz"
    for content in (b"", b"not a zip", b"PK\x03\x04 cut short"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken.npz is not an npz file of plain arrays"):
            read_statistics(path, 3, {})
    np.save(tmp_path / "array.npy", MU)
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(ValueError, match=r"broken.npz is not an npz file of plain arrays"):
        read_statistics(path, 3, {})
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz do not exist; name an npz file with mu and sigma"):
        read_statistics(tmp_path / "nowhere.npz", 3, {})
