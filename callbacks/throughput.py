"""Logs losses, learning rate, gradient norm and speed of training, and shows them as they come."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.steps import step_taken
from callbacks.tracking import Tracker
from datamodules.mixed import MixedDataModule
from modules.omnimamba.config import ModelConfig

Show = Callable[[int, dict[str, float]], None]
"""Told (step, metrics) at every log."""


class Throughput(pl.Callback):
    """Every N steps: ``train/loss``, ``train/loss_<task>``, ``train/lr``, ``train/grad_norm``, ``train/tokens_per_s``.

    Losses are the mean over the ranks and micro-steps of the step that is logged. tokens/s counts positions of all
    sequences on all ranks, image features and padding included, over wall time since the last log, reading included,
    what callbacks do after it (saving, evaluating) left out: a `RestartClock` behind them starts the clock again.
    """

    def __init__(
        self,
        tracker: Tracker,
        model: ModelConfig,
        every_n_steps: int,
        show: Show,
        beside: Callable[[], dict[str, float]],
    ) -> None:
        """``beside`` is asked for more metrics at every log."""
        self.tracker, self.model, self.every, self.show = tracker, model, every_n_steps, show
        self.beside = beside
        self._losses: dict[str, Tensor] = {}
        self._tokens = 0
        self._seconds = 0.0
        self._started = 0.0
        self._lr = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time counts from now on."""
        self._started = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The learning rate of this step."""
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Collect; log at multiples of ``every_n_steps``."""
        self._seconds += time.perf_counter() - self._started
        share = 1 / trainer.accumulate_grad_batches
        parts = {"loss": out["loss"].detach(), **{f"loss_{task}": value for task, value in out["losses"].items()}}
        for name, value in parts.items():
            scale = 1.0 if name == "loss" else share  # Lightning has scaled the loss itself already
            self._losses[name] = self._losses.get(name, torch.zeros_like(value)) + scale * value
        self._tokens += self._positions(batch) * trainer.world_size
        if not step_taken(trainer, i):
            return
        if trainer.global_step % self.every == 0:
            self._log(trainer)
        self._losses = {}

    def _log(self, trainer: pl.Trainer) -> None:
        names = sorted(self._losses)
        values = trainer.strategy.reduce(torch.stack([self._losses[name] for name in names]), reduce_op="mean")
        assert isinstance(values, Tensor)
        metrics = {f"train/{name}": value for name, value in zip(names, values.tolist(), strict=True)}
        metrics["train/lr"] = self._lr
        metrics.update(self.beside())
        metrics["train/tokens_per_s"] = self._tokens / self._seconds
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MixedDataModule)
        metrics.update({f"data/epoch_{task}": epoch for task, epoch in data.epochs().items()})
        self.tracker.log(trainer.global_step, metrics)
        if trainer.is_global_zero:
            self.show(trainer.global_step, metrics)
        self._tokens, self._seconds = 0, 0.0

    def _positions(self, batch: Any) -> int:
        count = 0
        if "mmu" in batch:
            mmu = batch["mmu"]
            count += len(mmu["images"]) * self.model.vision.patches
            count += sum(mmu["lengths"]) if "lengths" in mmu else mmu["input_ids"].numel()
        if "t2i" in batch:
            count += batch["t2i"]["caption_ids"].numel() + batch["t2i"]["image_ids"].numel()
        return count


class RestartClock(pl.Callback):
    """Last in the list: the time that the callbacks before it took is not training."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Start the clock again."""
        self.throughput.restart_clock()
