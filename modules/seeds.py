"""Random choices keyed by what they are for: no state to save, the same for any number of ranks and workers."""

import hashlib


def keyed_seed(*key: int | str) -> int:
    """A number in [0, 2**63) that is a fixed function of ``key``, for example (seed, "caption", epoch, sample)."""
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
