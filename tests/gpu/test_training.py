"""Training on a GPU through its real entry point: the same bits again, types, resume.

In deterministic mode nothing is autotuned; a run still compiles its kernels first.
"""

import shutil
from pathlib import Path

import pytest
import torch

from modules.checkpoints import find_checkpoint, read_state
from tests.gpu.running import Trainings
from tests.integration.running import assert_same_weights, losses, weights

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_deterministic_run_and_its_resume_give_the_same_bits(
    trainings: Trainings, tmp_path: Path, precision: str
) -> None:
    words = [f"trainer.precision={precision}", "checkpoint.every_n_steps=3"]
    for name in ("one", "two"):
        trainings.on_one(tmp_path / name, *words)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert_same_weights(weights(tmp_path / "one"), weights(tmp_path / "two"))
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "one" / "checkpoints" / "step-000000003", resumed / "checkpoints" / "step-000000003")
    shutil.copy(tmp_path / "one" / "config.yaml", resumed)
    trainings.on_one(resumed, *words)
    assert losses(resumed) == losses(tmp_path / "one")[3:]
    assert_same_weights(weights(resumed), weights(tmp_path / "one"))


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_parameters_and_moments_stay_in_float32(trainings: Trainings, tmp_path: Path, strategy: str) -> None:
    words = ["trainer.precision=bf16", f"hardware.strategy={strategy}", "checkpoint.every_n_steps=1"]
    trainings.on_one(tmp_path, *words, "trainer.max_steps=2")
    assert_float32(tmp_path, step=2)
    shutil.rmtree(find_checkpoint(tmp_path, pytest.fail))
    (tmp_path / "COMPLETE").unlink()
    trainings.on_one(tmp_path, *words, "trainer.max_steps=2")
    assert_float32(tmp_path, step=2)


def assert_float32(folder: Path, *, step: int) -> None:
    state = read_state(find_checkpoint(folder, pytest.fail))
    assert state["global_step"] == step
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32}
    moments = [value for each in state["optimizer_states"][0]["state"].values() for value in each.values()]
    assert {value.dtype for value in moments} == {torch.float32}
