import errno
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
        ({"mu": MU * np.nan, "sigma": SIGMA}, "mu of .*other.npz holds NaN or infinity"),
        ({"mu": MU, "sigma": SIGMA / 0}, "sigma of .*other.npz holds NaN or infinity"),
        ({"mu": MU + 1j, "sigma": SIGMA}, "mu of .*other.npz holds complex128, expected numbers"),
        ({"mu": MU.astype(str), "sigma": SIGMA}, "mu of .*other.npz holds <U32, expected numbers"),
        ({"mu": MU, "sigma": SIGMA, "n": 0}, "other.npz: n is 0, expected at least 2"),
        ({"mu": MU, "sigma": SIGMA, "n": [7, 7]}, r"other.npz: n is \[7, 7\], expected a whole number"),
        ({"mu": MU, "sigma": SIGMA, "kept": MU}, r"holds kept of shape \(3,\); the network's features need \(k, 3\)"),
        ({"mu": MU, "sigma": SIGMA, "kept": np.ones((5, 4))}, r"holds kept of shape \(5, 4\)"),
        ({"mu": MU, "sigma": SIGMA, "about": "uvit"}, "about of .*other.npz is not valid JSON"),
        ({"mu": MU, "sigma": SIGMA, "about": '{"fid_protocol": 1}'}, "about of .*: fid_protocol is 1, expected a text"),
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
    np.savez_compressed(path, mu=np.arange(1000.0), sigma=SIGMA)
    damaged = bytearray(path.read_bytes())
    damaged[100:200] = bytes(100)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"broken.npz is not an npz file of plain arrays"):
        read_statistics(path, 3, {})
    np.savez(path, mu=MU, sigma=SIGMA)
    encrypted = path.read_bytes()
    place = encrypted.index(b"PK\x01\x02") + 8  # the flags in the directory of the archive
    path.write_bytes(encrypted[:place] + bytes([encrypted[place] | 1]) + encrypted[place + 1 :])
    with pytest.raises(ValueError, match=r"broken.npz is not an npz file of plain arrays .*encrypted"):
        read_statistics(path, 3, {})
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"broken.npz is a git-lfs pointer"):
        read_statistics(path, 3, {})
    with pytest.raises(FileNotFoundError, match=r"reference statistics .*nowhere.npz does not exist"):
        read_statistics(tmp_path / "nowhere.npz", 3, {})


def test_a_disk_that_fails_is_not_called_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_statistics(save(tmp_path / "good.npz", mu=MU, sigma=SIGMA), 3, {})


def test_an_npy_is_refused_with_the_way_to_an_npz(tmp_path: Path) -> None:
    npy, npz = tmp_path / "a.npy", tmp_path / "a.npz"
    for content in (np.array({"mu": MU, "sigma": SIGMA}, dtype=object), MU):
        np.save(npy, content, allow_pickle=True)
        with pytest.raises(ValueError, match=r"a\.npy is an npy file.* Expected an npz with mu and sigma; ") as error:
            read_statistics(npy, 3, {})
    exec(str(error.value).rpartition("write ")[2], {"np": np, "npz": npz, "mu": MU, "sigma": SIGMA})  # as it says
    np.testing.assert_array_equal(read_statistics(npz, 3, {}).covariance, SIGMA)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_errors_of_float32_are_no_fault_at_any_scale(tmp_path: Path, scale: float) -> None:
    features = np.random.Generator(np.random.PCG64(0)).normal(size=(5, 40)).astype(np.float32)
    centred = features - features.mean(axis=0)
    sigma = scale * (centred.T @ centred) / 4
    sigma[0, 1:] += scale * np.float32(1e-7)  # as sums in another order have it
    found = read_statistics(save(tmp_path / "a.npz", mu=np.zeros(40), sigma=sigma), 40, {})
    np.testing.assert_array_equal(found.covariance, sigma)
    sigma[0, 1:] += scale * 0.1
    with pytest.raises(ValueError, match="so it is not a covariance"):
        read_statistics(save(tmp_path / "a.npz", mu=np.zeros(40), sigma=sigma), 40, {})


def test_a_file_that_points_outside_itself_is_refused(tmp_path: Path) -> None:
    """With bytes missing at its start, zipfile looks for parts before the beginning."""
    path = tmp_path / "a.npz"
    Statistics(mean=np.zeros(3), covariance=np.eye(3), n=9).write(path)
    content = path.read_bytes()
    for start in (1, 30, 200):
        path.write_bytes(content[:4] + content[4 + start :])
        with pytest.raises(ValueError, match=r"a\.npz is not an npz file of plain arrays") as error:
            read_statistics(path, 3, {})
        assert len(str(error.value)) < 500
