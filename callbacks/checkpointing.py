"""Saves a checkpoint every N steps and at the end, whole or not at all."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from callbacks.steps import step_taken
from modules.checkpoints import STATE, commit, remove_old
from modules.files import step_name


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and how much to keep."""

    every_n_steps: int = 1000
    keep_last: int = 2

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        return [
            f"checkpoint.{name}={getattr(self, name)} must be at least 1"
            for name in ("every_n_steps", "keep_last")
            if getattr(self, name) < 1
        ]


class Checkpointing(pl.Callback):
    """Writes ``RUN/checkpoints/step-*``; ``facts`` is plain data that goes into each, under ``run``."""

    def __init__(self, config: CheckpointConfig, folder: Path, facts: dict[str, Any]) -> None:
        self.config = config
        self.folder = folder
        self.facts = facts
        self._saved = -1

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write down whose checkpoint it is: configuration, code version, W&B run."""
        checkpoint["run"] = self.facts

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Save at multiples of ``every_n_steps``."""
        if step_taken(trainer, i) and trainer.global_step % self.config.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the last step, if it was not."""
        if trainer.global_step and trainer.global_step != self._saved:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        final = self.folder / step_name(step)
        temporary = self.folder / f".{final.name}.tmp"
        if trainer.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        trainer.strategy.barrier()
        trainer.save_checkpoint(temporary / STATE)
        if trainer.is_global_zero:
            commit(temporary, final, step)
            remove_old(self.folder, self.config.keep_last, newest=step)
        trainer.strategy.barrier()
        self._saved = step
