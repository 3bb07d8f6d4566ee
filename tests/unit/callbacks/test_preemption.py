"""One process; what several agree on is tested in tests/integration/test_preemption.py and tests/slurm."""

import signal
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.preemption import Preemption
from modules import signals


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Signalled(pl.Callback):
    """Raises the flag in the middle of a micro-step; notes who would handle a SIGTERM."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, micro_step: int | None) -> None:
        self.monkeypatch, self.micro_step = monkeypatch, micro_step
        self.handlers: set[Any] = set()

    def on_before_zero_grad(self, *_: Any) -> None:
        self.handlers.add(signal.getsignal(signal.SIGTERM))

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.micro_step:
            self.monkeypatch.setattr(signals, "_received", "SIGUSR1")


def train(watcher: Signalled, accumulate: int = 1) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=6,
        accumulate_grad_batches=accumulate,
        callbacks=[watcher, Preemption(timedelta(minutes=1))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(torch.ones(100, 1), batch_size=2))
    return trainer


@pytest.mark.parametrize(("micro_step", "accumulate", "step"), [(0, 1, 1), (3, 1, 4), (3, 3, 2), (5, 3, 2), (6, 3, 3)])
def test_stops_where_the_step_is_complete(
    monkeypatch: pytest.MonkeyPatch, micro_step: int, accumulate: int, step: int
) -> None:
    trainer = train(Signalled(monkeypatch, micro_step), accumulate)
    assert (trainer.global_step, trainer.should_stop) == (step, True)


def test_told_before_the_first_step_none_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", "SIGTERM")
    trainer = train(Signalled(monkeypatch, None))
    assert (trainer.global_step, trainer.should_stop) == (0, True)


def test_undisturbed_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train(Signalled(monkeypatch, None))
    assert (trainer.global_step, trainer.should_stop) == (6, False)


def test_lightning_handles_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    watcher = Signalled(monkeypatch, None)
    train(watcher)
    assert watcher.handlers == {before}
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_lightning_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    monkeypatch.delattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor")
    with pytest.raises(AttributeError, match=r"_TrainingEpochLoop\._broadcast_sigterm_tensor is gone: this version"):
        train(Signalled(monkeypatch, None))
