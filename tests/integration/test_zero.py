"""DeepSpeed ZeRO on a CPU: the same losses and the same checkpoints as DDP, interchangeable.

DeepSpeed compiles a small extension when it first runs on a CPU, which needs a C++ compiler.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from modules.checkpoints import find_checkpoint, read_state

from .running import ENVIRONMENT, ROOT, UNIFIED, Train, command, common_losses, keys_of_steps, weights

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed on a CPU needs a C++ compiler")

SHARED = ["trainer.max_steps=4", "model.adapters.dropout=0.0", "data.global_batch={mmu: 12, t2i: 192}"]
SAVING = ["checkpoint.every_n_steps=1", "checkpoint.keep_last=9"]
# two groups, one of them without weight decay, and a width that three ranks do not divide
SHARED += ["optim.weight_decay=0.1", "model.projector_hidden=127"]
slow = pytest.mark.slow
STRATEGIES = [pytest.param("zero1", marks=slow), "zero2", "zero3"]


@pytest.fixture(scope="module")
def run_of(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Four steps under a strategy on two processes that accumulate two micro-steps; trained when first asked for."""
    folder = tmp_path_factory.mktemp("strategies")

    @cache
    def trained(strategy: str) -> Path:
        words = ["hardware.devices=2", f"hardware.strategy={strategy}"]
        train(UNIFIED, folder / strategy, *SHARED, *SAVING, *words)
        return folder / strategy

    return trained


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_and_gradient_norms_are_those_of_ddp(run_of: Callable[[str], Path], strategy: str) -> None:
    assert keys_of_steps(run_of(strategy)) == keys_of_steps(run_of("ddp"))
    for row, expected in zip(common_losses(run_of(strategy)), common_losses(run_of("ddp")), strict=True):
        # float32 sums of the same gradients, in another order
        assert row == {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_is_that_of_ddp(run_of: Callable[[str], Path], strategy: str) -> None:
    ddp, zero = (read_state(find_checkpoint(run_of(each), pytest.fail)) for each in ("ddp", strategy))
    assert zero.keys() == ddp.keys()
    torch.testing.assert_close(zero["state_dict"], ddp["state_dict"], rtol=0, atol=1e-6)
    ours, theirs = zero["optimizer_states"][0], ddp["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, state in theirs["state"].items():
        torch.testing.assert_close(ours["state"][number], state, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("before", "after", "processes"),
    [
        pytest.param("zero1", "zero1", 2, marks=slow),
        ("zero2", "zero2", 1),
        pytest.param("zero3", "zero3", 4, marks=slow),
        ("ddp", "zero3", 2),
        pytest.param("zero3", "zero1", 2, marks=slow),
        ("zero2", "ddp", 1),
    ],
)
def test_a_run_goes_on_under_any_strategy(
    run_of: Callable[[str], Path], train: Train, tmp_path: Path, before: str, after: str, processes: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_of(before) / "checkpoints" / "step-000000002", folder / "checkpoints" / "step-000000002")
    shutil.copy(run_of(before) / "config.yaml", folder)
    train(UNIFIED, folder, *SHARED, f"hardware.devices={processes}", f"hardware.strategy={after}")
    keys = keys_of_steps(run_of("ddp"))
    assert keys_of_steps(folder) == {step: keys[step] for step in (3, 4)}
    for row, expected in zip(common_losses(folder), common_losses(run_of("ddp"))[2:], strict=True):
        assert row == {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}
    torch.testing.assert_close(weights(folder), weights(run_of("ddp")), rtol=0, atol=2e-6)


def test_frozen_parts_stay_whole(train: Train, tmp_path: Path) -> None:
    """In stage 1 most of the model is frozen; it is in the checkpoint all the same."""
    for strategy in ("ddp", "zero3"):
        words = ["trainer.max_steps=2", "hardware.devices=2", f"hardware.strategy={strategy}"]
        train("configs/smoke_mmu.yaml", tmp_path / strategy, *words, "model.adapters.dropout=0.0")
    ddp, zero = weights(tmp_path / "ddp"), weights(tmp_path / "zero3")
    torch.testing.assert_close(zero, ddp, rtol=0, atol=2e-6)


def test_evaluation_is_that_of_ddp_even_where_parameters_are_sharded(small: list[str], tmp_path: Path) -> None:
    """Five questions on two ranks: unequal work."""
    evaluation = ["evaluation.gqa=null", "evaluation.fid=null", "evaluation.samples.n=3", "evaluation.pope.limit=5"]
    found = {}
    for strategy in ("ddp", "zero3"):
        words = [*evaluation, *SHARED, "trainer.max_steps=1", "hardware.devices=2", f"hardware.strategy={strategy}"]
        folder = tmp_path / strategy
        done = subprocess.run(
            command(UNIFIED, *small, *words, f"run.dir={folder}"),
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results = json.loads((folder / "records" / "step-000000001" / "results.json").read_text())
        found[strategy] = results["pope_style"]["metrics"]
        assert list((folder / "samples").rglob("*.png"))
    assert found["zero3"] == found["ddp"]


ONE_STEP = """
from datetime import timedelta
import atexit, json
import lightning.pytorch as pl, torch
from deepspeed.utils import groups
from torch.utils.data import DataLoader
from modules.zero import ZeroStrategy
from pipelines.run.console import run_verb

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)
    def training_step(self, batch, i):
        return self.net(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

def main():
    atexit.register(lambda: print("left" if not torch.distributed.is_initialized() else "in"))  # called last
    strategy = ZeroStrategy(3, timeout=timedelta(minutes=7))
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, strategy=strategy)
    trainer.fit(Module(), DataLoader(torch.ones(4, 4)))
    group = groups._get_data_parallel_group()
    kept = []
    for leads in (True, False):
        ZeroStrategy.is_global_zero = leads
        kept += [len(strategy.optimizer_state(None)["state"]), len(strategy.lightning_module_state_dict())]
    print(json.dumps([str(group._get_backend(torch.device("cpu")).options._timeout), kept]))

run_verb(main)
"""


def test_deepspeeds_group_waits_as_told_and_is_left_at_the_end_and_one_rank_keeps_the_whole_state() -> None:
    """Torch gives NCCL ten minutes where nobody says anything; a copy of each rank would not fit into a node."""
    words = [sys.executable, "-c", ONE_STEP]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, found, at_the_end = done.stdout.splitlines()
    assert json.loads(found) == ["0:07:00", [2, 2, 0, 0]]
    assert at_the_end == "left"
