"""Random choices that depend only on a key: not on the process, the machine or the NumPy version."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from numpy.random import PCG64

T = TypeVar("T")


class Dice:
    """A stream of choices seeded by a text key.

    Built on PCG64's raw integers: NumPy guarantees those across versions, but not its distributions (NEP 19).
    """

    def __init__(self, *key: object) -> None:
        """Seed by the parts of ``key``, joined with slashes."""
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
        self._bits = PCG64(int.from_bytes(digest, "little"))

    def below(self, limit: int) -> int:
        """An integer in ``[0, limit)``; the bias is below ``limit / 2**64``."""
        return int(self._bits.random_raw()) % limit

    def chance(self, share: float) -> bool:
        """True with probability ``share``."""
        return self.below(2**32) < share * 2**32

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All ``options`` in a random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in options]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """At most ``count`` elements of ``options`` from different positions, in a random order."""
        return self.shuffled(options)[:count]
