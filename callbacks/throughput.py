"""Logs losses, learning rates, speed, memory and data of training, and shows them."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.steps import step_taken
from callbacks.tracking import Tracker
from datamodules.mixed import MixedDataModule
from modules.files import GIB
from modules.flops import model_flops
from modules.omnimamba.config import ModelConfig
from modules.stage_modules import StageModule

Show = Callable[[int, dict[str, float]], None]
"""Called with (step, metrics) at each log."""


class Throughput(pl.Callback):
    """Every N steps, logs the train/, data/ and system/ keys of docs/tracking.md.

    Losses are the mean over the ranks and micro-steps of the logged step. tokens/s counts the positions of all
    sequences on all ranks, image features and padding included. It is over wall time since the last log, data loading
    included. The time of later callbacks (saving, evaluating) does not count: a `RestartClock` after them restarts the
    clock.
    """

    def __init__(
        self,
        tracker: Tracker,
        model: ModelConfig,
        every_n_steps: int,
        show: Show,
        beside: Callable[[], dict[str, float]],
        peak_tflops: float | None = None,
    ) -> None:
        """``beside`` is called for more metrics at each log; ``peak_tflops`` is the GPU's peak."""
        self.tracker, self.model, self.every, self.show = tracker, model, every_n_steps, show
        self.beside, self.peak = beside, peak_tflops
        self._losses: dict[str, Tensor] = {}
        self._tokens, self._flops = 0, 0.0
        self._seconds, self._waited = 0.0, 0.0
        self._started = 0.0
        self._lrs: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count time from now on."""
        self._started = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the clock started as waiting for the batch."""
        self._waited += time.perf_counter() - self._started

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the learning rates of this step."""
        groups = optimizer.param_groups
        self._lrs = {"train/lr": groups[0]["lr"]}
        self._lrs |= {f"train/lr_{group['name']}": group["lr"] for group in groups if "name" in group}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Collect; log at multiples of ``every_n_steps``."""
        self._seconds += time.perf_counter() - self._started
        share = 1 / trainer.accumulate_grad_batches
        parts = {"loss": out["loss"].detach(), **{f"loss_{task}": value for task, value in out["losses"].items()}}
        for name, value in parts.items():
            scale = 1.0 if name == "loss" else share  # Lightning has scaled the loss itself already
            self._losses[name] = self._losses.get(name, torch.zeros_like(value)) + scale * value
        assert isinstance(module, StageModule)
        positions = self._positions(batch)
        self._tokens += positions * trainer.world_size
        self._flops += model_flops(module, batch, positions)
        if not step_taken(trainer, i):
            return
        if trainer.global_step % self.every == 0:
            self._log(trainer)
        self._losses = {}

    def _log(self, trainer: pl.Trainer) -> None:
        names = sorted(self._losses)
        waited = self._losses[names[0]].new_tensor(self._waited)
        together = torch.stack([*(self._losses[name] for name in names), waited])
        values = trainer.strategy.reduce(together, reduce_op="mean")
        assert isinstance(values, Tensor)
        *losses, waited_s = values.tolist()
        metrics = {f"train/{name}": value for name, value in zip(names, losses, strict=True)}
        metrics |= self._lrs | self.beside()
        metrics["train/tokens_per_s"] = self._tokens / self._seconds
        metrics["system/data_wait_s"] = waited_s
        metrics |= self._utilisation(values.device)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MixedDataModule)
        metrics |= {f"data/epoch_{task}": epoch for task, epoch in data.epochs().items()}
        metrics |= {f"data/samples_{task}": position for task, position in data.positions.items()}
        self.tracker.log(trainer.global_step, metrics)
        if trainer.is_global_zero:
            self.show(trainer.global_step, metrics)
        self._tokens, self._flops, self._seconds, self._waited = 0, 0.0, 0.0, 0.0

    def _utilisation(self, device: torch.device) -> dict[str, float]:
        """Utilisation of this rank's device."""
        found = {"system/model_tflops": self._flops / self._seconds / 1e12}
        if self.peak is not None:
            found["system/mfu"] = found["system/model_tflops"] / self.peak
        if device.type == "cuda":
            found["system/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / GIB
            found["system/gpu_reserved_gib"] = torch.cuda.memory_reserved() / GIB
        return found

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
    """Must be the last callback: the time of the callbacks before it does not count as training."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock after any evaluation at the start."""
        self.throughput.restart_clock()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Start the clock again."""
        self.throughput.restart_clock()
