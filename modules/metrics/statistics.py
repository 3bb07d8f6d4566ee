"""Statistics of reference pictures, published ones and our own: npz files with ``mu`` and ``sigma``."""

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from typing_extensions import TypedDict

from modules.files import new_file
from modules.reading import checked, parse_json, require_file

Array = NDArray[np.float64]
ROUNDING = 1e-6
"""Of the largest covariance: how far a file's numbers, often float32, may be from symmetry and from 0."""
_NPY = b"\x93NUMPY"
_DAMAGED = (ValueError, RuntimeError, EOFError, LookupError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile)
"""What zipfile and numpy raise for damaged or encrypted files. A disk that fails to read raises OSError, its own."""


class _Count(TypedDict):
    n: Annotated[int, Ge(2)]


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
        ValueError: it is not an npz, a key is missing, types or shapes are wrong, ``sigma`` is not a covariance, or it
            was made in another way.
    """
    arrays = _arrays(path)
    missing = [key for key in ("mu", "sigma") if key not in arrays]
    if missing:
        raise ValueError(f"{path} is missing {' and '.join(missing)}, found {', '.join(arrays)}; expected mu and sigma")
    mean, covariance = (_numbers(arrays[key], f"{key} of {path}").astype(np.float64) for key in ("mu", "sigma"))
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise ValueError(
            f"{path} holds mu of shape {mean.shape} and sigma of shape {covariance.shape}; the network's features need "
            f"({width},) and ({width}, {width})"
        )
    _require_covariance(path, covariance)
    about = {}
    if "about" in arrays:
        about = checked(parse_json(str(arrays["about"]), f"about of {path}"), dict[str, str], f"about of {path}")
    for key, value in wanted.items():
        if about.get(key, value) != value:
            raise ValueError(f"{path} was made with {key}={about[key]}, expected {value}; they cannot be compared")
    n = checked({"n": arrays["n"].tolist()}, _Count, str(path))["n"] if "n" in arrays else None
    kept = _numbers(arrays["kept"], f"kept of {path}").astype(np.float32) if "kept" in arrays else None
    if kept is not None and (kept.ndim != 2 or kept.shape[1] != width or len(kept) < 2):
        raise ValueError(f"{path} holds kept of shape {kept.shape}; the network's features need (k, {width}), k >= 2")
    return Statistics(mean=mean, covariance=covariance, n=n, kept=kept, about=about)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """What an npz holds, by name."""
    require_file(path, "reference statistics")
    content = path.read_bytes()  # at once: a damaged file makes zipfile look for places that are not in it
    if content.startswith(_NPY):
        raise ValueError(
            f"{path} is an npy file: one array, or a pickle, which is never loaded. Expected an npz with mu and "
            "sigma; let the program that made it write np.savez(npz, mu=mu, sigma=sigma)"
        )
    try:
        with zipfile.ZipFile(BytesIO(content)), np.load(BytesIO(content), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except _DAMAGED as error:
        raise ValueError(f"{path} is not an npz file of plain arrays ({error!s:.200})") from error


def _numbers(values: NDArray[Any], where: str) -> NDArray[Any]:
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{where} holds {values.dtype}, expected numbers")
    if not np.isfinite(values).all():
        raise ValueError(f"{where} holds NaN or infinity; make or fetch it again")
    return values


def _require_covariance(path: Path, covariance: Array) -> None:
    rounding = ROUNDING * np.abs(covariance).max()
    if np.diag(covariance).min() < -rounding or not np.allclose(covariance, covariance.T, rtol=1e-4, atol=rounding):
        raise ValueError(f"sigma of {path} is not symmetric with a diagonal of at least 0, so it is not a covariance")
