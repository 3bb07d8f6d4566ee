"""The order of samples: a pure function, each sample once per epoch, for any number of ranks."""

from itertools import islice

import pytest

from datamodules.plan import SampleKey, StepPlan, Stream

SIZES = {"mmu": 17, "t2i": 53}


def plan(accumulation: int = 1, world_size: int = 1, rank: int = 0, micro: tuple[int, int] = (12, 48)) -> StepPlan:
    streams = {task: Stream(task, size, seed=5) for task, size in SIZES.items()}  # type: ignore[arg-type]
    return StepPlan(streams, {"mmu": micro[0], "t2i": micro[1]}, accumulation, world_size, rank)


def steps(count: int, accumulation: int, world_size: int) -> list[list[SampleKey]]:
    """All samples of each step, micro-step by micro-step and rank by rank."""
    factor = accumulation * world_size
    plans = [plan(accumulation, world_size, rank, (12 // factor, 48 // factor)) for rank in range(world_size)]
    positions = {"mmu": 0, "t2i": 0}
    found = []
    for _ in range(count):
        found.append([key for j in range(accumulation) for p in plans for key in p.micro_step(positions, j)])
        positions = plans[0].advance(positions)
    return found


@pytest.mark.parametrize(("accumulation", "world_size"), [(1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (3, 4), (1, 12)])
def test_a_step_holds_the_same_samples_in_the_same_order_however_it_is_shared(
    accumulation: int, world_size: int
) -> None:
    for one, shared in zip(steps(5, 1, 1), steps(5, accumulation, world_size), strict=True):
        for task in ("mmu", "t2i"):
            assert [k for k in shared if k.task == task] == [k for k in one if k.task == task]


def test_the_make_up_of_every_micro_step_is_exact() -> None:
    positions = {"mmu": 0, "t2i": 0}
    mixed = plan(accumulation=2, world_size=3, rank=1, micro=(3, 48))
    for _ in range(20):
        for j in range(2):
            tasks = [key.task for key in mixed.micro_step(positions, j)]
            assert tasks == ["mmu"] * 3 + ["t2i"] * 48
        positions = mixed.advance(positions)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_every_sample_comes_exactly_once_per_epoch(size: int) -> None:
    stream = Stream("mmu", size, seed=3)
    keys = stream.at(0, 3 * size)
    for epoch in range(3):
        mine = keys[epoch * size : (epoch + 1) * size]
        assert {key.epoch for key in mine} == {epoch}
        assert sorted(key.index for key in mine) == list(range(size))
    assert stream.at(size - 1, 2) == keys[size - 1 : size + 1]


def test_epochs_tasks_and_seeds_differ() -> None:
    orders = {
        (seed, task, epoch): tuple(key.index for key in Stream(task, 100, seed).at(100 * epoch, 100))  # type: ignore[arg-type]
        for seed in (0, 1)
        for task in ("mmu", "t2i")
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 8


def test_the_order_never_changes() -> None:
    """Written down once: a run must find its samples again under every later version."""
    assert [key.index for key in Stream("t2i", 1000, seed=0).at(0, 20)] == GOLDEN


def test_a_shuffled_order_is_not_the_stored_one() -> None:
    indices = [key.index for key in islice(Stream("t2i", 1000, seed=0).at(0, 1000), 1000)]
    in_place = sum(i == index for i, index in enumerate(indices))
    assert in_place < 10  # one is expected


GOLDEN = [412, 749, 394, 830, 629, 518, 480, 116, 509, 687, 45, 173, 46, 585, 637, 446, 756, 251, 800, 575]
