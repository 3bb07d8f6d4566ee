"""Exact resume: k steps, a checkpoint, and the other N - k in a new process are N steps, to the last bit.

The checkpoint is one that the uninterrupted run saved on its way. LoRA dropout is on, epochs end within steps, and the
uninterrupted run is evaluated in between, which the resumed one is not.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.checkpoints import read_state
from modules.files import step_name

from .running import ENVIRONMENT, ROOT, UNIFIED, Train, assert_same_weights, command, keys_of_steps, losses, weights

STEPS = 4
LENGTH = [f"trainer.max_steps={STEPS}", "checkpoint.every_n_steps=1", "checkpoint.keep_last=9"]
EVALUATED = ["evaluation.every_n_steps=1", "evaluation.gqa=null", "evaluation.fid=null", "evaluation.speed=null"]
MMU, T2I = "configs/smoke_mmu.yaml", "configs/smoke_t2i.yaml"
TWICE = {
    MMU: ["data.micro_batch={mmu: 3, t2i: 0}", "data.global_batch={mmu: 12, t2i: 0}"],
    T2I: ["data.micro_batch={mmu: 0, t2i: 12}", "data.global_batch={mmu: 0, t2i: 48}"],
    UNIFIED: ["data.micro_batch={mmu: 1, t2i: 12}", "data.global_batch={mmu: 4, t2i: 48}"],
}
"""On two processes they accumulate two micro-steps, on one four."""
POPE = [*EVALUATED, "evaluation.samples=null", "evaluation.pope.limit=2"]
WORKERS = ["data.num_workers=2"]
two = ["hardware.devices=2"]
slow = pytest.mark.slow

CASES = [
    pytest.param(MMU, [*POPE, *WORKERS], 1, id="mmu"),
    pytest.param(T2I, [*EVALUATED, "evaluation.samples.n=2"], 3, id="t2i", marks=slow),
    pytest.param(UNIFIED, [*POPE, *two], 2, id="unified, ddp", marks=slow),
    pytest.param(UNIFIED, [*POPE, *two, "hardware.strategy=zero2"], 2, id="unified, zero2", marks=slow),
    pytest.param(UNIFIED, POPE, 2, id="unified", marks=slow),
    pytest.param(UNIFIED, [*POPE, *WORKERS, *two, "hardware.strategy=zero1"], 1, id="unified, zero1", marks=slow),
    pytest.param(MMU, [*POPE, *two, "hardware.strategy=zero2"], 3, id="mmu, zero2", marks=slow),
    pytest.param(T2I, [*EVALUATED, "evaluation.samples.n=2", *two], 1, id="t2i, ddp", marks=slow),
]


def assert_same(one: Any, other: Any) -> None:
    """The same containers, values and bits."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(("config", "more", "at"), CASES)
def test_a_resumed_run_is_the_uninterrupted_one(
    small: list[str], train: Train, tmp_path: Path, config: str, more: list[str], at: int
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done = subprocess.run(
        command(config, *small, *LENGTH, *TWICE[config], *more, f"run.dir={whole}"),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    evaluated = whole / ("samples" if config == T2I else "records")
    assert {path.name for path in evaluated.iterdir()} == {step_name(step) for step in range(1, STEPS + 1)}
    shutil.copytree(whole / "checkpoints" / step_name(at), resumed / "checkpoints" / step_name(at))
    shutil.copy(whole / "config.yaml", resumed)
    free = [word for word in more if word.startswith(("hardware", "data.num_workers"))]
    train(config, resumed, *LENGTH, *TWICE[config], *free)
    assert losses(resumed) == losses(whole)[at:]
    keys = keys_of_steps(whole)
    assert keys_of_steps(resumed) == {step: keys[step] for step in range(at + 1, STEPS + 1)}
    assert_same_weights(weights(resumed), weights(whole))
    one, other = (read_state(folder / "checkpoints" / step_name(STEPS)) for folder in (whole, resumed))
    for part in ("optimizer_states", "lr_schedulers", "MixedDataModule"):
        assert_same(other[part], one[part])
