"""Two ranks on two GPUs, or on one that they share: strategies agree, and killed runs go on, on two ranks or on one."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.gpu.running import Trainings
from tests.integration.failing_rank import MESSAGE
from tests.integration.running import assert_same_weights, common_losses, lines, losses, weights

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

SAME = ["data.global_batch={mmu: 12, t2i: 192}", "model.adapters.dropout=0.0", "checkpoint.every_n_steps=3"]
TOLERANCE = 1e-4
"""Of a loss: the same products in tf32, summed over ranks in another order."""


@pytest.fixture(scope="module")
def runs(trainings: Trainings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six steps on two ranks under every strategy."""
    folder = tmp_path_factory.mktemp("strategies")
    strategies = ("ddp", "zero1", "zero2", "zero3")
    for strategy in strategies:
        trainings.on_two(folder / strategy, *SAME, f"hardware.strategy={strategy}")
    return {strategy: folder / strategy for strategy in strategies}


def assert_close(folder: Path, expected: Path, *, first: int = 0) -> None:
    for row, other in zip(common_losses(folder), common_losses(expected)[first:], strict=True):
        assert row == {key: pytest.approx(value, rel=TOLERANCE) for key, value in other.items()}


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_losses_are_those_of_ddp(runs: dict[str, Path], strategy: str) -> None:
    assert_close(runs[strategy], runs["ddp"])


@pytest.mark.parametrize(("before", "after"), [("zero2", "zero2"), ("zero3", "ddp"), ("ddp", "zero1")])
def test_a_checkpoint_of_two_ranks_resumes_on_one(
    runs: dict[str, Path], trainings: Trainings, tmp_path: Path, before: str, after: str
) -> None:
    folder, step = tmp_path / "run", "checkpoints/step-000000003"
    shutil.copytree(runs[before] / step, folder / step)
    shutil.copy(runs[before] / "config.yaml", folder)
    trainings.on_one(folder, *SAME, f"hardware.strategy={after}")
    assert_close(folder, runs["ddp"], first=3)


def test_killed_ranks_go_on_to_the_same_bits_on_two_and_near_them_on_one(
    runs: dict[str, Path], trainings: Trainings, tmp_path: Path
) -> None:
    words = [*SAME, "hardware.strategy=zero2"]
    trainings.kill_two(tmp_path / "two", *words, after=4)
    assert not (tmp_path / "two" / "COMPLETE").exists()
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    trainings.on_two(tmp_path / "two", *words)
    assert min(row["step"] for row in lines(tmp_path / "two" / "metrics.jsonl") if row["attempt"] == 2) == 4
    assert losses(tmp_path / "two") == losses(runs["zero2"])
    assert_same_weights(weights(tmp_path / "two"), weights(runs["zero2"]))
    trainings.on_one(tmp_path / "one", *words)
    assert_close(tmp_path / "one", runs["ddp"])


def test_a_rank_that_fails_says_why_at_once(trainings: Trainings, tmp_path: Path) -> None:
    """In an orderly end NCCL would wait for the other rank until a timeout: an hour."""
    code, printed = trainings.fail_on_two(tmp_path / "run", *SAME, "hardware.timeout_minutes=60")
    assert f"RuntimeError: {MESSAGE}" in printed
    # rank 1's own, or that of a rank 0 that has started it and waits in NCCL: Lightning kills that one
    assert code in ((1,) if torch.cuda.device_count() == 1 else (1, -signal.SIGKILL)), printed
