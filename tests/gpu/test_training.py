"""Training on GPUs through its real entry point: determinism, resume, strategies, numbers of GPUs.

In deterministic mode nothing is autotuned; a run still compiles its kernels first.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from modules.checkpoints import find_checkpoint, read_state
from pipelines.config import load
from pipelines.scenes import prepare_scenes
from tests.integration.running import NO_EVALUATION, ROOT, UNIFIED, assert_same_weights, command, losses, weights

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
COMMON = [
    *(
        "scenes.images=80",
        "scenes.val_images=4",
        "scenes.patch_size=8",
        "model.image_tokens=64",
        "tracking.wandb=disabled",
    ),
    *("hardware.accelerator=gpu", "trainer.deterministic=true", "trainer.max_steps=6", "data.log_samples=true"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    overrides = [*COMMON, f"scenes.folder={tmp_path_factory.mktemp('data') / 'scenes'}"]
    config = load(ROOT / UNIFIED, overrides).scenes
    assert config is not None
    prepare_scenes(config, say=lambda _: None)
    return overrides


def train(small: list[str], folder: Path, *more: str, gpus: str | None = None) -> str:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {})}
    words = command(UNIFIED, *small, *NO_EVALUATION, f"run.dir={folder}", *more)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_deterministic_run_and_its_resume_give_the_same_bits(
    small: list[str], tmp_path: Path, precision: str
) -> None:
    words = [f"trainer.precision={precision}", "checkpoint.every_n_steps=3"]
    for name in ("one", "two"):
        train(small, tmp_path / name, *words)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert_same_weights(weights(tmp_path / "one"), weights(tmp_path / "two"))
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "one" / "checkpoints" / "step-000000003", resumed / "checkpoints" / "step-000000003")
    shutil.copy(tmp_path / "one" / "config.yaml", resumed)
    train(small, resumed, *words)
    assert losses(resumed) == losses(tmp_path / "one")[3:]
    assert_same_weights(weights(resumed), weights(tmp_path / "one"))


def test_parameters_and_moments_stay_in_float32(small: list[str], tmp_path: Path) -> None:
    for strategy in ("ddp", "zero2"):
        folder = tmp_path / strategy
        train(small, folder, "trainer.precision=bf16", f"hardware.strategy={strategy}", "trainer.max_steps=2")
        state = read_state(find_checkpoint(folder, pytest.fail))
        assert {value.dtype for value in state["state_dict"].values()} == {torch.float32}
        moments = [value for each in state["optimizer_states"][0]["state"].values() for value in each.values()]
        assert {value.dtype for value in moments} == {torch.float32}


@pytest.fixture(scope="module")
def strategies(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("strategies")
    words = ["hardware.devices=2", "data.global_batch={mmu: 12, t2i: 192}", "model.adapters.dropout=0.0"]
    saving = ["checkpoint.every_n_steps=3", "checkpoint.keep_last=9"]
    for strategy in ("ddp", "zero1", "zero2", "zero3"):
        train(small, folder / strategy, *words, *saving, f"hardware.strategy={strategy}")
    return {path.name: path for path in folder.iterdir()}


@two_gpus
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_losses_are_those_of_ddp(strategies: dict[str, Path], strategy: str) -> None:
    for row, expected in zip(losses(strategies[strategy]), losses(strategies["ddp"]), strict=True):
        # the same products in tf32, summed over ranks in another order
        assert row == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}


@two_gpus
@pytest.mark.parametrize(("before", "after"), [("zero2", "zero2"), ("zero3", "ddp"), ("ddp", "zero1")])
def test_a_checkpoint_of_two_gpus_resumes_on_one(
    strategies: dict[str, Path], small: list[str], tmp_path: Path, before: str, after: str
) -> None:
    folder, step = tmp_path / "run", "checkpoints/step-000000003"
    shutil.copytree(strategies[before] / step, folder / step)
    shutil.copy(strategies[before] / "config.yaml", folder)
    words = ["data.global_batch={mmu: 12, t2i: 192}", "model.adapters.dropout=0.0", "hardware.devices=1"]
    train(small, folder, *words, f"hardware.strategy={after}", gpus="0")
    for row, expected in zip(losses(folder), losses(strategies["ddp"])[3:], strict=True):
        assert row == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}
