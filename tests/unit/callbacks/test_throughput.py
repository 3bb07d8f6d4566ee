"""Speed is positions over the time of training alone, by a clock that the test holds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import throughput
from callbacks.throughput import RestartClock, Throughput
from datamodules.mixed import MixedDataModule
from modules.omnimamba.config import ModelConfig, VisionConfig

MODEL = ModelConfig(vision=VisionConfig(image_size=16, patch_size=8))
BATCH = {
    "mmu": {"images": torch.zeros(3, 3, 16, 16), "input_ids": torch.zeros(3, 10)},
    "t2i": {"caption_ids": torch.zeros(2, 7), "image_ids": torch.zeros(2, 4)},
}
POSITIONS = 3 * (10 + 4) + 2 * (7 + 4)


class Run:
    """A trainer that runs two micro-steps a step on two ranks, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.micro, self.rows, self.shown = 100.0, 0, [], []
        data = MixedDataModule.__new__(MixedDataModule)
        monkeypatch.setattr(MixedDataModule, "epochs", lambda _: {"mmu": 0.5})
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)
        self.trainer: Any = SimpleNamespace(
            accumulate_grad_batches=2,
            world_size=2,
            global_step=0,
            is_global_zero=True,
            datamodule=data,
            strategy=SimpleNamespace(reduce=lambda value, reduce_op: value),
        )
        tracker: Any = SimpleNamespace(log=lambda step, metrics: self.rows.append((step, metrics)))
        self.callback = Throughput(
            tracker, MODEL, 2, lambda step, metrics: self.shown.append(step), lambda: {"train/grad_norm": 5.0}
        )
        self.last = RestartClock(self.callback)
        self.callback.on_train_start(self.trainer, self.any)

    any: Any = None

    def step(self, losses: tuple[float, float], *, training: float, callbacks: float) -> None:
        """``training`` seconds for each micro-step, ``callbacks`` seconds of others behind it."""
        for j, loss in enumerate(losses):
            self.now += training
            if j == 1:
                optimizer: Any = SimpleNamespace(param_groups=[{"lr": 0.5}])
                module = torch.nn.Linear(1, 1)
                self.callback.on_before_optimizer_step(self.trainer, module, optimizer)  # type: ignore[arg-type]
                self.trainer.global_step += 1
            out = {"loss": torch.tensor(loss / 2), "losses": {"mmu": torch.tensor(loss)}}  # Lightning scales the loss
            self.callback.on_train_batch_end(self.trainer, self.any, out, BATCH, self.micro)
            self.now += callbacks
            self.last.on_train_batch_end(self.trainer, self.any, out, BATCH, self.micro)
            self.micro += 1


def test_tokens_per_second_leave_out_what_other_callbacks_took(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.step((1.0, 3.0), training=0.5, callbacks=100.0)
    assert run.rows == []
    run.step((2.0, 6.0), training=0.5, callbacks=100.0)
    [(step, metrics)] = run.rows
    assert step == 2
    assert run.shown == [2]
    assert metrics["train/tokens_per_s"] == pytest.approx(4 * POSITIONS * 2 / (4 * 0.5))
    assert metrics["train/loss"] == pytest.approx(4.0)  # of the step that is logged
    assert metrics["train/loss_mmu"] == pytest.approx(4.0)
    assert metrics["train/lr"] == 0.5
    assert metrics["train/grad_norm"] == pytest.approx(5.0)
    assert metrics["data/epoch_mmu"] == 0.5


def test_the_next_log_counts_from_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    for seconds in (9.0, 9.0, 0.25, 0.25):
        run.step((1.0, 1.0), training=seconds, callbacks=1.0)
    assert run.rows[1][1]["train/tokens_per_s"] == pytest.approx(POSITIONS * 2 / 0.25)
