"""Two ranks on two GPUs, or on one that they share: strategies agree, and killed runs go on, on two ranks or on one.

A run spends most of its time in starting. So all runs that wait for nothing are started together, then all that need
their checkpoints; each test looks at its own.
"""

import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.running import Trainings
from tests.integration.failing_rank import MESSAGE
from tests.integration.running import assert_same_weights, common_losses, lines, losses, weights

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

SAME = ["data.global_batch={mmu: 12, t2i: 192}", "model.adapters.dropout=0.0", "checkpoint.every_n_steps=3"]
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
ZERO2 = [*SAME, "hardware.strategy=zero2"]
TOLERANCE = 1e-4
"""Of a loss: the same products in tf32, summed over ranks in another order."""

Started = dict[str, "Future[Any]"]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(pool: ThreadPoolExecutor, trainings: Trainings, folder: Path) -> Started:
    """Runs from the beginning: six steps under every strategy on two ranks, one on one, and three that do not end."""
    started: Started = {
        strategy: pool.submit(trainings.on_two, folder / strategy, *SAME, f"hardware.strategy={strategy}")
        for strategy in STRATEGIES
    }
    started["alone"] = pool.submit(trainings.on_one, folder / "alone", *ZERO2)
    started["killed"] = pool.submit(trainings.kill_two, folder / "killed", *ZERO2, after=4)
    started["stopped"] = pool.submit(trainings.stop_two, folder / "stopped", *ZERO2, after=1)
    started["failed"] = pool.submit(trainings.fail_on_two, folder / "failed", *SAME, "hardware.timeout_minutes=60")
    return started


@pytest.fixture(scope="module")
def then(pool: ThreadPoolExecutor, trainings: Trainings, folder: Path, first: Started) -> Started:
    """Runs from the checkpoints of the first ones."""

    def resume(start: Callable[..., None], new: str, of: str, strategy: str, *, at: int | None = None) -> "Future[Any]":
        def work() -> None:
            first[of].result()
            if at is None:
                shutil.copytree(folder / of, folder / new)
            else:
                step = f"checkpoints/step-{at:09d}"
                shutil.copytree(folder / of / step, folder / new / step)
                shutil.copy(folder / of / "config.yaml", folder / new)
            start(folder / new, *SAME, f"hardware.strategy={strategy}")

        return pool.submit(work)

    one, two = trainings.on_one, trainings.on_two
    return {
        "zero2-zero2": resume(one, "zero2-zero2", "zero2", "zero2", at=3),
        "zero3-ddp": resume(one, "zero3-ddp", "zero3", "ddp", at=3),
        "ddp-zero1": resume(one, "ddp-zero1", "ddp", "zero1", at=3),
        "one-two": resume(two, "one-two", "alone", "zero2", at=3),
        **{f"killed-{n}": resume(start, f"killed-{n}", "killed", "zero2") for n, start in ((1, one), (2, two))},
        **{f"stopped-{n}": resume(start, f"stopped-{n}", "stopped", "zero2") for n, start in ((1, one), (2, two))},
    }


def assert_close(folder: Path, expected: Path, *, first: int = 0) -> None:
    for row, other in zip(common_losses(folder), common_losses(expected)[first:], strict=True):
        assert row == {key: pytest.approx(value, rel=TOLERANCE) for key, value in other.items()}


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_losses_are_those_of_ddp(first: Started, then: Started, folder: Path, strategy: str) -> None:
    for each in ("ddp", strategy):
        first[each].result()
    assert_close(folder / strategy, folder / "ddp")


@pytest.mark.parametrize("name", ["zero2-zero2", "zero3-ddp", "ddp-zero1"])
def test_a_checkpoint_of_two_ranks_resumes_on_one(first: Started, then: Started, folder: Path, name: str) -> None:
    for each in (first["ddp"], then[name]):
        each.result()
    assert_close(folder / name, folder / "ddp", first=3)


def test_a_checkpoint_of_one_rank_resumes_on_two(then: Started, first: Started, folder: Path) -> None:
    for each in (first["ddp"], then["one-two"]):
        each.result()
    assert_close(folder / "alone", folder / "ddp")
    assert_close(folder / "one-two", folder / "ddp", first=3)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_ended_ranks_go_on_to_the_same_bits_on_two_and_near_them_on_one(
    first: Started, then: Started, folder: Path, how: str
) -> None:
    for each in (first["ddp"], first["zero2"], first[how], then[f"{how}-1"], then[f"{how}-2"]):
        each.result()
    assert not (folder / how / "COMPLETE").exists()
    resumed = min(row["step"] for row in lines(folder / f"{how}-2" / "metrics.jsonl") if row["attempt"] == 2)
    last = max(row["step"] for row in lines(folder / how / "metrics.jsonl"))
    # a kill goes back to the last checkpoint; who is told to stop saves the step that it is at
    assert resumed == (4 if how == "killed" else last + 1)
    assert losses(folder / f"{how}-2") == losses(folder / "zero2")
    assert_same_weights(weights(folder / f"{how}-2"), weights(folder / "zero2"))
    assert_close(folder / f"{how}-1", folder / "ddp")


def test_a_rank_that_fails_says_why_at_once(first: Started, then: Started) -> None:
    """In an orderly end NCCL would wait for the other rank until a timeout: an hour."""
    code, printed = first["failed"].result()
    assert f"RuntimeError: {MESSAGE}" in printed
    # rank 1's own, or that of a rank 0 that has started it and waits in NCCL: Lightning kills that one
    assert code in ((1,) if torch.cuda.device_count() == 1 else (1, -signal.SIGKILL)), printed
