import numpy as np
import pytest

from modules.metrics import manifold
from modules.metrics.manifold import precision_recall


def column(*values: float) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(values, dtype=np.float32)[:, None]


def test_by_hand() -> None:
    # every nearest neighbour is 1 away; 0.5 and 1.5 lie among the real, 0, 1 and 2 among the generated
    assert precision_recall(column(0.5, 1.5, 10, 11), column(0, 1, 2, 3), neighbours=1) == (0.5, 0.75)


def test_identical_and_disjoint_sets() -> None:
    x = np.random.Generator(np.random.PCG64(0)).normal(size=(30, 4)).astype(np.float32)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 1000) == (0, 0)


def test_one_place_is_precise_and_recalls_little() -> None:
    real = column(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert precision_recall(column(5, 5.1, 5.2, 5.3), real, neighbours=1) == (1, 0.1)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_do_not_change_it_and_it_is_the_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "BLOCK", block)
    draw = np.random.Generator(np.random.PCG64(1))
    generated, real = draw.normal(size=(23, 3)) + 50, draw.normal(size=(31, 3)) + 50.5

    def among(members: np.ndarray, asked: np.ndarray) -> float:  # type: ignore[type-arg]
        def away(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=2))

        radii = np.sort(away(members, members), axis=1)[:, 3]  # the first is itself
        return float((away(asked, members) <= radii).any(axis=1).mean())

    expected = among(real, generated), among(generated, real)
    assert 0 < expected[0] < 1
    assert precision_recall(generated, real) == pytest.approx(expected)


def test_refuses_what_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match="3 generated and 9 real features; 3 neighbours need at least 4 of each"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match=r"features have shapes \(4, 2\) and \(4, 3\), but"):
        precision_recall(np.zeros((4, 2)), np.zeros((4, 3)))
