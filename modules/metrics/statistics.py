"""Statistics of reference pictures, published ones and our own: npz files with ``mu`` and ``sigma``."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modules.files import new_file

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The statistics by which sets of pictures are compared."""

    mean: Array
    """(d,)"""
    covariance: Array
    """(d, d)"""
    n: int | None = None
    """Number of pictures; None in published files."""
    kept: NDArray[np.float32] | None = None
    """Features (k, d) of some of the pictures, for metrics that need more than moments."""
    about: Mapping[str, str] = field(default_factory=dict)
    """How they were made, if the file says."""

    def write(self, path: Path) -> None:
        """Write a file for `read_statistics`, completely or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"mu": self.mean, "sigma": self.covariance, "about": json.dumps(dict(self.about))}
        if self.n is not None:
            arrays["n"] = self.n
        if self.kept is not None:
            arrays["kept"] = self.kept
        with new_file(path) as file:
            np.savez(file, **arrays)


def read_statistics(path: Path, width: int, wanted: Mapping[str, str]) -> Statistics:
    """Read an npz of ``mu`` (d,) and ``sigma`` (d, d). If it says how it was made, that must agree with ``wanted``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an npz, a key is missing, shapes are wrong, ``sigma`` is not a covariance, or it was made
            in another way.
    """
    if not path.is_file():
        raise FileNotFoundError(f"reference statistics {path} do not exist; name an npz file with mu and sigma")
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an npz file of plain arrays ({error})") from error
    missing = [key for key in ("mu", "sigma") if key not in arrays]
    if missing:
        raise ValueError(f"{path} is missing {' and '.join(missing)}, found {', '.join(arrays)}; expected mu and sigma")
    mean, covariance = (arrays[key].astype(np.float64) for key in ("mu", "sigma"))
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise ValueError(
            f"{path} holds mu of shape {mean.shape} and sigma of shape {covariance.shape}; the network's features need "
            f"({width},) and ({width}, {width})"
        )
    _require_covariance(path, mean, covariance)
    about = json.loads(str(arrays["about"])) if "about" in arrays else {}
    for key, value in wanted.items():
        if about.get(key, value) != value:
            raise ValueError(f"{path} was made with {key}={about[key]}, expected {value}; they cannot be compared")
    n = int(arrays["n"]) if "n" in arrays else None
    return Statistics(mean=mean, covariance=covariance, n=n, kept=arrays.get("kept"), about=about)


def _require_covariance(path: Path, mean: Array, covariance: Array) -> None:
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise ValueError(f"{path} holds NaN or infinity; make or fetch it again")
    if np.diag(covariance).min() < 0 or not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6):
        raise ValueError(f"sigma of {path} is not symmetric with a diagonal of at least 0, so it is not a covariance")
