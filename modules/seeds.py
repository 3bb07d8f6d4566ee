"""Random choices keyed by their purpose: no state to save, and the same for any number of ranks and workers."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def keyed_seed(*key: int | str) -> int:
    """A number in [0, 2**63) that is a fixed function of ``key``, for example (seed, "caption", epoch, sample)."""
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_hashes(seed: int, *columns: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One number in [0, 2**64) for each row of ``columns`` (N each), a fixed function of the row and ``seed``.

    We use our own hash because libraries change their generators between versions. Over one column it is a bijection.
    """
    hashed = np.full_like(columns[0], seed, dtype=np.uint64)
    for column in columns:
        hashed = _splitmix64(column.astype(np.uint64) ^ hashed)
    return hashed


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit numbers that scatters neighbours."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
