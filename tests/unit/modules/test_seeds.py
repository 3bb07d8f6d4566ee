"""Keyed choices: fixed for ever, and scattered."""

import numpy as np

from modules.seeds import keyed_hashes, keyed_seed


def test_seeds_never_change() -> None:
    """Written down once: a run must find its random choices again under every later version."""
    assert keyed_seed(0, "order", "t2i", 0) == ORDER
    assert keyed_hashes(7, np.arange(3), np.array([0, 0, 1])).tolist() == HASHES


def test_hashes_are_splitmix64() -> None:
    """First outputs of the published generator, seeded with 0 and advanced by its own increment."""
    increment = 0x9E3779B97F4A7C15
    states = np.array([0, increment, 2 * increment % 2**64], dtype=np.uint64).view(np.int64)
    assert keyed_hashes(0, states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_every_bit_is_as_often_set_as_not() -> None:
    rows = np.stack(np.meshgrid(np.arange(200), np.arange(50))).reshape(2, -1)
    hashes = keyed_hashes(3, *rows)
    assert len(np.unique(hashes)) == 10_000
    share = [np.mean(hashes >> np.uint64(bit) & np.uint64(1)) for bit in range(64)]
    assert max(abs(each - 0.5) for each in share) < 0.025  # five standard deviations


ORDER = 4418355268242651762
HASHES = [13309476754707697221, 13103443362824980401, 16247700015443706586]
