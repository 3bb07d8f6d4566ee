"""Saves a checkpoint every N steps and at the end, whole or not at all."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from callbacks.steps import step_taken
from callbacks.tracking import read_metrics
from modules.checkpoints import STATE, commit, remove_old
from modules.files import step_name


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and how much to keep."""

    every_n_steps: int = 1000
    keep_last: int = 2
    best: str = ""
    """A measure's key in metrics.jsonl, such as ``eval_mini/pope/f1_macro``: the checkpoint of the step at which it was
    best is kept too."""
    best_is: Literal["highest", "lowest"] = "highest"

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = [
            f"checkpoint.{name}={getattr(self, name)} must be at least 1"
            for name in ("every_n_steps", "keep_last")
            if getattr(self, name) < 1
        ]
        if self.best and not self.best.startswith("eval"):
            found.append(f"checkpoint.best={self.best} must be a measure's key, such as eval/pope/f1_macro")
        return found


def best_step(rows: Sequence[Mapping[str, Any]], checkpoints: Path, config: CheckpointConfig) -> int | None:
    """The step, among those that have a checkpoint, at which ``config.best`` was best; of equals the earliest."""
    there = {folder.name for folder in checkpoints.glob("step-*")}
    values: dict[int, float] = {
        row["step"]: row[config.best]
        for row in rows
        if row.get(config.best) is not None and step_name(row["step"]) in there
    }
    if not values:
        return None
    sign = 1 if config.best_is == "highest" else -1
    return max(values, key=lambda step: (sign * values[step], -step))


class Checkpointing(pl.Callback):
    """Writes ``RUN/checkpoints/step-*``; ``facts`` is plain data that goes into each, under ``run``."""

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

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write down whose checkpoint it is: configuration, code version, W&B run."""
        checkpoint["run"] = self.facts

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """What was resumed from is saved."""
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Save at multiples of ``every_n_steps``."""
        if step_taken(trainer, i) and trainer.global_step % self.config.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the last step, if it was not: the end of the run, or where it was told to stop."""
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
            self.saved(final)
            remove_old(self.folder, self.config.keep_last, newest=step, best=self._best())
        trainer.strategy.barrier()
        self._saved = step

    def _best(self) -> int | None:
        """The best step so far. What was measured at the step just saved is not known yet; it is kept as the last."""
        if not self.config.best:
            return None
        return best_step(read_metrics(self.folder.parent), self.folder, self.config)
