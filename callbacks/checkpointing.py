"""Saves a checkpoint every N steps and at the end, whole or not at all."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from callbacks.steps import step_taken
from callbacks.tracking import read_metrics
from modules.checkpoint_writing import snapshot, write_checkpoint
from modules.checkpoints import STATE, CheckpointError, read_state, remove_old
from modules.files import step_folders, step_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and how much to keep."""

    every_n_steps: int = 1000
    keep_last: int = 2
    best: str = ""
    """A measure's key in metrics.jsonl, such as ``eval_mini/pope/f1_macro``: the checkpoint of the step at which it was
    best is kept too."""
    best_is: Literal["highest", "lowest"] = "highest"
    background: bool = False
    """Write while training goes on, from a copy in the memory of rank 0's machine: as large as the checkpoint."""
    on_error: Literal["go_on", "stop"] = "go_on"
    """What becomes of training when a checkpoint cannot be written, on a full disk say. The last one of a run, and that
    of a run that is told to stop, must be."""
    max_errors: int = 3
    """So many in a row that cannot be written end the run all the same."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = [
            f"checkpoint.{name}={getattr(self, name)} must be at least 1"
            for name in ("every_n_steps", "keep_last", "max_errors")
            if getattr(self, name) < 1
        ]
        if self.best and not self.best.startswith("eval"):
            found.append(f"checkpoint.best={self.best} must be a measure's key, such as eval/pope/f1_macro")
        return found


def best_step(rows: Sequence[Mapping[str, Any]], checkpoints: Path, config: CheckpointConfig) -> int | None:
    """The step, among those that have a checkpoint, at which ``config.best`` was best; of equals the earliest."""
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
    """Takes the state that Lightning puts together, on rank 0, for `Checkpointing` to write; reads what was written."""

    state: dict[str, Any] | None = None

    def __init__(self, device: torch.device) -> None:
        """``device`` is where the state is used."""
        self.device = device

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.state = checkpoint

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """As `read_state`. A GPU takes copies; an optimizer on the CPU keeps the very moments that it is given."""
        assert Path(path).name == STATE
        # nothing mapped is kept: a fused AdamW, as in modules/optim.py, takes its step counts to the GPU too
        return read_state(Path(path).parent, mapped=self.device.type != "cpu")

    def take(self) -> dict[str, Any]:
        assert self.state is not None
        state, self.state = self.state, None
        return state


class Checkpointing(pl.Callback):
    """Writes ``RUN/checkpoints/step-*``; ``facts`` is plain data that goes into each, under ``run``.

    All ranks learn whether a checkpoint was written, and stop together where that ends the run. Written in the
    background, they learn it at the next save, at the end, or when `settle` is called.

    Raises:
        CheckpointError: it was not, and ``on_error``, ``max_errors`` or the end of the run says that this matters.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        folder: Path,
        facts: dict[str, Any],
        saved: Callable[[Path], None] = lambda checkpoint: None,
    ) -> None:
        """``saved`` is told of each checkpoint, on the first rank."""
        self.config = config
        self.folder = folder
        self.facts = facts
        self.saved = saved
        self._saved = -1
        self._errors = 0
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: int | None = None
        self._outcome: Callable[[], None] | None = None
        """On rank 0: returns once the pending step is written."""

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Stand between Lightning and the disk."""
        self._receiver = trainer.strategy.checkpoint_io = _Receiver(trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write down whose checkpoint it is: configuration, code version, W&B run."""
        checkpoint["run"] = self.facts

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """What was resumed from is saved."""
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Save at multiples of ``every_n_steps``."""
        if step_taken(trainer, i) and trainer.global_step % self.config.every_n_steps == 0:
            self._save(trainer, background=self.config.background)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the last step, if it was not: the end of the run, or where it was told to stop."""
        self.settle(trainer)
        if trainer.global_step and trainer.global_step != self._saved:
            self._save(trainer, must=True)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Finish what is being written, and say so if it fails; the other ranks cannot be told any more."""
        if self._outcome is None:
            return
        try:
            self._outcome()
        except CheckpointError as error:
            log.error("CHECKPOINT NOT SAVED: %s", error)

    def settle(self, trainer: pl.Trainer, *, must: bool = False) -> None:
        """Wait until what is being written is there, or is not; a collective call.

        Raises:
            CheckpointError: see the class; with ``must`` whenever it is not there.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        problem = trainer.strategy.broadcast(self._problem())
        if not problem:
            self._saved, self._errors = step, 0
            return
        self._errors += 1
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
        write_checkpoint(state, final, step)
        self.saved(final)
        try:
            remove_old(self.folder, self.config.keep_last, newest=step, best=self._best())
        except (OSError, ValueError) as error:  # the checkpoint is there all the same
            log.warning("old checkpoints in %s stay there: %s", self.folder, error)

    def _problem(self) -> str | None:
        """What kept the pending checkpoint from being written; on rank 0 alone."""
        if self._outcome is None:
            return None
        outcome, self._outcome = self._outcome, None
        try:
            outcome()
        except CheckpointError as error:
            return str(error)
        return None

    def _best(self) -> int | None:
        """The best step so far. What was measured at the step just saved is not known yet; it is kept as the last."""
        if not self.config.best:
            return None
        return best_step(read_metrics(self.folder.parent), self.folder, self.config)
