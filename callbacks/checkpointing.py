"""Saves a checkpoint every N steps and at the end, either complete or not at all."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from callbacks.checkpoint_config import CheckpointConfig
from callbacks.steps import step_taken
from callbacks.tracking import read_metrics
from modules import signals
from modules.checkpoint_writing import remove_old, snapshot, write_checkpoint
from modules.checkpoints import STATE, CheckpointError, NotFiniteError, read_state
from modules.exchange import from_rank_0
from modules.files import step_folders, step_name

log = logging.getLogger(__name__)


def best_step(rows: Sequence[Mapping[str, Any]], checkpoints: Path, config: CheckpointConfig) -> int | None:
    """The step with the best value of ``config.best``, among steps that have a checkpoint. A tie goes to the earliest.

    None if no such step has a value.
    """
    there = {folder.name for folder in step_folders(checkpoints)}
    values: dict[int, float] = {
        row["step"]: row[config.best]
        for row in rows
        if row.get(config.best) is not None and step_name(row["step"]) in there
    }
    if not values:
        return None
    sign = 1 if config.best_is == "highest" else -1
    return max(values, key=lambda step: (sign * values[step], -step))


class _Receiver(TorchCheckpointIO):
    """Holds the state that Lightning collects on rank 0, for `Checkpointing` to write. Also reads checkpoints."""

    state: dict[str, Any] | None = None

    def __init__(self, device: torch.device) -> None:
        """``device`` is where the state is used."""
        self.device = device

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.state = checkpoint

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Like `read_state`. A GPU copies what it reads; an optimizer on the CPU keeps the tensors it is given."""
        assert Path(path).name == STATE
        # mapped tensors are safe on a GPU: the fused AdamW of modules/optim.py moves even its step counts there
        return read_state(Path(path).parent, mapped=self.device.type != "cpu")

    def take(self) -> dict[str, Any]:
        assert self.state is not None
        state, self.state = self.state, None
        return state


class Checkpointing(pl.Callback):
    """Writes ``RUN/checkpoints/step-*``. ``facts`` is plain data that goes into each, under ``run``.

    All ranks learn whether a checkpoint was written, and stop together if a failure ends the run. If it is written in
    the background, they learn it at the next save, at the end, or when `settle` is called.

    Raises:
        CheckpointError: a checkpoint was not written, and ``on_error``, ``max_errors`` or the end of the run makes that
            fatal; or its state holds numbers that are not finite, which always is.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        folder: Path,
        facts: dict[str, Any],
        saved: Callable[[Path], None] = lambda checkpoint: None,
    ) -> None:
        """``saved`` is called with the path of each checkpoint, on rank 0."""
        self.config = config
        self.folder = folder
        self.facts = facts
        self.saved = saved
        self._saved = -1
        self._undamaged: dict[str, bool] = {}
        """Name of a checkpoint to whether it is; reading all of them at every save would take long."""
        self._errors = 0
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: int | None = None
        self._outcome: Callable[[], None] | None = None
        """On rank 0: returns once the pending step is written."""

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Put the receiver between Lightning and the disk."""
        self._receiver = trainer.strategy.checkpoint_io = _Receiver(trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the facts about the run: configuration, code version, W&B run."""
        checkpoint["run"] = self.facts

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Count the step we resumed from as saved."""
        self._saved = trainer.global_step
        self._undamaged[step_name(self._saved)] = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Save at multiples of ``every_n_steps``."""
        if step_taken(trainer, i) and trainer.global_step % self.config.every_n_steps == 0:
            self._save(trainer, background=self.config.background)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the last step if it is not saved yet: the end of the run, or the step it was stopped at."""
        self.settle(trainer)
        if trainer.global_step and trainer.global_step != self._saved:
            self._save(trainer, must=True)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Finish the checkpoint being written, and log a failure. The other ranks can no longer be told."""
        if self._outcome is None:
            return
        try:
            self._outcome()
        except Exception as error:  # noqa: BLE001  # the first error is the one to raise
            log.error("CHECKPOINT NOT SAVED: %s", error)

    def settle(self, trainer: pl.Trainer, *, must: bool = False) -> None:
        """Wait until the pending checkpoint is written or has failed. A collective call.

        Raises:
            CheckpointError: see the class; with ``must``, on any failure.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        problem, fatal = from_rank_0(self._problem())
        if not problem:
            self._saved, self._errors = step, 0
            return
        self._errors += 1
        if fatal:
            raise CheckpointError(problem)
        if must:
            raise CheckpointError(f"{problem}. The run cannot end without it; start the same command again")
        if self.config.on_error == "stop":
            raise CheckpointError(f"{problem}. Training stops, as checkpoint.on_error=stop says")
        if self._errors >= self.config.max_errors:
            raise CheckpointError(
                f"{problem}. That was number {self._errors} in a row, and training stops (checkpoint.max_errors)"
            )
        if trainer.is_global_zero:
            log.error(
                "CHECKPOINT NOT SAVED: %s. Training goes on (checkpoint.on_error=go_on); number %d in a row, %d end it",
                *(problem, self._errors, self.config.max_errors),
            )

    def _save(self, trainer: pl.Trainer, *, background: bool = False, must: bool = False) -> None:
        self.settle(trainer)
        self._pending = step = trainer.global_step
        trainer.save_checkpoint(STATE)  # hands the state to the receiver
        if trainer.is_global_zero:
            state = self._receiver.take()
            if background:
                self._outcome = self._thread.submit(self._write, snapshot(state), step).result
            else:
                self._outcome = partial(self._write, state, step)
        if not background:
            self.settle(trainer, must=must)

    def _write(self, state: dict[str, Any], step: int) -> None:
        final = self.folder / step_name(step)
        with signals.finishing():
            write_checkpoint(state, final, step)
        try:
            self.saved(final)
        except OSError as error:
            log.warning("%s is saved, but could not be logged: %s", final, error)
        try:
            self._undamaged[final.name] = True
            remove_old(self.folder, self.config.keep_last, newest=step, best=self._best(), known=self._undamaged)
        except (OSError, ValueError) as error:  # the new checkpoint is complete all the same
            log.warning("old checkpoints in %s could not be removed: %s", self.folder, error)

    def _problem(self) -> tuple[str | None, bool]:
        """Why the pending checkpoint could not be written, or None, and whether that is fatal; known on rank 0 only."""
        if self._outcome is None:
            return None, False
        outcome, self._outcome = self._outcome, None
        try:
            outcome()
        except CheckpointError as error:
            return str(error), isinstance(error, NotFiniteError)
        except Exception as error:  # whatever it is, the other ranks must learn it
            log.exception("a checkpoint was not written")
            return f"a checkpoint was not written: {error}", True
        return None, False

    def _best(self) -> int | None:
        """The best step so far. The step just saved is not measured yet; it is kept because it is the newest."""
        if not self.config.best:
            return None
        return best_step(read_metrics(self.folder.parent), self.folder, self.config)
