"""What would ruin a training silently stops it, or is told."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from callbacks import guards, resident
from callbacks.guards import (
    DivergedError,
    FiniteGuard,
    GradientGuard,
    GuardConfig,
    NoGradientError,
    first_not_finite,
)
from callbacks.resident import MemoryGuard, memory_limit, resident_bytes
from datamodules.mixed import MixedDataModule
from datamodules.plan import Places
from modules.optim import OptimConfig
from modules.stage_modules import UnifiedFinetune
from modules.stages import StageConfig
from tests.unit.modules.omnimamba.conftest import batch_of, build


def stage() -> UnifiedFinetune:
    return UnifiedFinetune(build(), StageConfig(name="unified_finetune"), OptimConfig(), max_steps=1, seed=0)


class Step:
    """A trainer's view of one parameter whose gradient is set, step after step."""

    def __init__(self, config: GuardConfig, folder: Path, data: MixedDataModule) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        tracker: Any = SimpleNamespace(log=lambda step, metrics: self.rows.append((step, metrics)))
        self.guard = FiniteGuard(config, tracker, folder)
        self.module = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1.0)
        self.trainer: Any = SimpleNamespace(
            strategy=None,
            global_step=0,
            global_rank=0,
            is_global_zero=True,
            accumulate_grad_batches=1,
            datamodule=data,
        )

    def take(self, gradient: float) -> float:
        """One step; returns by how much the weight moved."""
        module: Any = self.module
        before = float(module.weight.detach())
        self.guard.on_train_batch_start(
            self.trainer, module, {"places": {"mmu": Places(np.array([0]), np.array([7]))}}, self.trainer.global_step
        )
        module.weight.grad = torch.tensor([[gradient]])
        self.guard.on_before_optimizer_step(self.trainer, module, self.optimizer)
        self.optimizer.step()
        self.trainer.global_step += 1
        self.guard.on_train_batch_end(self.trainer, module, None, None, self.trainer.global_step - 1)
        return before - float(module.weight.detach())


def test_an_update_that_is_not_finite_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: MixedDataModule
) -> None:
    step = Step(GuardConfig(), tmp_path, data)
    monkeypatch.setattr(guards, "first_not_finite", lambda module, batches: "model.backbone")
    assert step.take(0.25) == 0.25
    assert step.guard.norm == 0.25
    weight = step.module.weight.detach().clone()
    with pytest.raises(DivergedError, match=r"gradient of step 2 is not finite.*First seen in model\.backbone"):
        step.take(float("nan"))
    assert torch.equal(step.module.weight, weight)
    found = json.loads((tmp_path / "not_finite_step2_rank0.json").read_text())
    assert found == {"step": 2, "rank": 0, "where": "model.backbone", "samples": [{"mmu": ["talk-7"]}]}


def test_a_disk_that_takes_nothing_does_not_hide_why_a_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, data: MixedDataModule
) -> None:
    (tmp_path / "file").touch()
    step = Step(GuardConfig(), tmp_path / "file", data)
    monkeypatch.setattr(guards, "first_not_finite", lambda module, batches: "model.backbone")
    with pytest.raises(DivergedError, match=r"gradient of step 1 is not finite"):
        step.take(float("inf"))
    assert "not_finite_step1_rank0.json could not be written" in caplog.text
    assert "talk-7" in caplog.text


@pytest.mark.parametrize("name", ["backbone.layers.1.mixer.out_proj", "projector.2", "image_mlp.0"])
def test_the_part_that_is_first_not_finite_is_named(name: str) -> None:
    module = stage()
    with torch.no_grad():
        module.model.get_submodule(name).weight[0, 0] = float("inf")  # type: ignore[index,operator]
    assert first_not_finite(module, [batch_of()]) == f"model.{name}"


def test_what_is_first_not_finite_in_the_backward_pass_says_so() -> None:
    module = stage()
    losses = module.training_step(batch_of(), 0)  # type: ignore[arg-type]
    losses["loss"].backward()
    module.model.projector[0].weight.grad[0, 0] = float("nan")  # type: ignore[index]
    told = first_not_finite(module, [batch_of()])
    assert told == (
        "the backward pass or on another rank, this one's forward pass being finite "
        "(gradient of model.projector.0.weight)"
    )


def test_spikes_are_left_out_up_to_a_limit(tmp_path: Path, data: MixedDataModule) -> None:
    config = GuardConfig(spike_sigma=6, spike_window=40, spike_limit=2)
    step = Step(config, tmp_path, data)
    usual = [1.0 + 0.01 * (number % 5) for number in range(40)]
    assert step.take(30.0) == pytest.approx(30.0)  # nothing is known yet
    assert [step.take(norm) for norm in usual] == pytest.approx(usual, abs=1e-5)
    state = step.guard.state_dict()
    assert len(state["norms"]) == 40  # the first has gone out of the window
    assert step.take(30.0) == 0
    assert step.rows == [(42, {"guards/spike_norm": 30.0, "guards/spikes_left_out": 1})]
    assert step.take(1.03) == pytest.approx(1.03, abs=1e-5)
    assert step.take(30.0) == 0
    with pytest.raises(DivergedError, match=r"3 updates within 40 steps.*more than guards\.spike_limit=2"):
        step.take(30.0)
    resumed = Step(config, tmp_path, data)
    resumed.guard.load_state_dict(state)
    assert resumed.take(30.0) == 0  # judged as the uninterrupted run would


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


def test_a_trained_parameter_without_gradient_is_an_error() -> None:
    module: Any = Half()
    guard, trainer = GradientGuard(), SimpleNamespace()
    guard.on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
    module.used(torch.ones(1, 2)).sum().backward()
    with pytest.raises(NoGradientError, match=r"1 parameters that this stage trains got no gradient.* unused\.weight"):
        guard.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    module.unused.requires_grad_(False)
    guard = GradientGuard()
    for _ in range(2):  # armed for the first step alone
        guard.on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
        module.used(torch.ones(1, 2)).sum().backward()
        guard.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]


HANGING = """
import time
from callbacks.guards import HangGuard
guard = HangGuard(0.2 / 60)
guard.on_train_start(None, None)
def stuck():
    time.sleep(1)
stuck()
guard.on_train_batch_end(None, None, None, None, 0)
guard.teardown(None, None, "fit")
"""


def test_a_step_that_hangs_is_shown() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", HANGING], cwd=root, capture_output=True, text=True, check=True)
    assert "Timeout" in done.stderr
    assert "in stuck" in done.stderr


def test_memory_counts_this_process_and_its_children() -> None:
    before = resident_bytes()
    code = "x = bytearray(200 * 2**20); print(len(x), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        grown = resident_bytes() - before
    finally:
        child.communicate(b"\n")
    assert 200 * 2**20 < grown < 400 * 2**20


def test_memory_near_its_limit_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(resident, "resident_bytes", lambda: 19 * 2**30)
    monkeypatch.setattr(resident, "memory_limit", lambda: 20 * 2**30)
    guard = MemoryGuard(0.9)
    assert [guard.look(), guard.look()] == [19.0, 19.0]
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "this process and its workers hold 19.0 of 20.0 GiB of memory (guards.memory_share=0.9)"
    ]


def test_the_limit_is_the_batch_systems_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.max"
    monkeypatch.setattr(resident, "CGROUP_LIMITS", (path,))
    machine = memory_limit()
    path.write_text("max\n")
    assert memory_limit() == machine
    path.write_text("1000000\n")
    assert memory_limit() == 1_000_000


def test_problems() -> None:
    assert GuardConfig().problems() == []
    assert GuardConfig(
        spike_sigma=-1, hang_minutes=float("nan"), spike_window=5, spike_limit=0, memory_share=2
    ).problems() == [
        "guards.spike_sigma=-1 must be 0 (off) or more",
        "guards.hang_minutes=nan must be 0 (off) or more",
        "guards.spike_window=5 must be at least 32, to know what is usual",
        "guards.spike_limit=0 must be at least 1",
        "guards.memory_share=2 must lie in (0, 1]",
    ]
