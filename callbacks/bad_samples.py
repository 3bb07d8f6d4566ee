"""Samples that could not be used: written to ``RUN/bad_samples.jsonl``, counted over all ranks, limited."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from callbacks.bad_samples_file import read_bad_samples
from callbacks.steps import step_taken
from callbacks.tracking import Tracker
from datamodules.datasets import DataError
from datamodules.mixed import MixedDataModule
from modules.exchange import from_rank_0, gathered
from modules.json_lines import append_rows, drop_torn_line
from modules.omnimamba.config import Task
from modules.run_files import BAD_SAMPLES

ALWAYS_ALLOWED = 10
"""A run never stops for this many bad samples or fewer, however short it is."""


class BadSampleLog(pl.Callback):
    """Writes one line per bad sample: {"step", "attempt", "rank", "task", "epoch", "key", "reason", "substitute"}.

    ``data/bad_samples_<task>`` is logged whenever it grows. ``step`` is the optimizer step that the substitute went
    into, counted from 1. The ranks merge what they found only at steps that are logged or saved, so the other steps
    cost no collective. A resumed run continues the counts from the file.

    Raises:
        DataError: more than ``limit`` (a share) of a stream's samples so far, and more than ten, could not be used.
    """

    def __init__(self, folder: Path, tracker: Tracker, *, limit: float, every: tuple[int, ...]) -> None:
        self.path = folder / BAD_SAMPLES
        self.tracker, self.limit, self.every = tracker, limit, every
        self.counts: Counter[Task] = Counter()
        self._pending: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Count what earlier attempts found up to the step this one starts from."""
        counts: Counter[Task] = Counter()
        if trainer.is_global_zero:
            drop_torn_line(self.path)
            counts.update(row["task"] for row in read_bad_samples(self.path, trainer.global_step))
        self.counts = Counter(from_rank_0(counts))

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Collect; merge over the ranks at steps that are logged or saved."""
        step = trainer.global_step if step_taken(trainer, i) else trainer.global_step + 1
        self._pending += [
            {"step": step, "attempt": self.tracker.attempt, "rank": trainer.global_rank, **bad} for bad in batch["bad"]
        ]
        if step_taken(trainer, i) and any(step % every == 0 for every in self.every):
            self._put_together(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Merge the rest."""
        self._put_together(trainer)

    def _put_together(self, trainer: pl.Trainer) -> None:
        rows = [row for rank in gathered(self._pending) for row in rank]
        self._pending = []
        if not rows:
            return
        if trainer.is_global_zero:
            append_rows(self.path, rows)
        self.counts.update(row["task"] for row in rows)
        self.tracker.log(trainer.global_step, {f"data/bad_samples_{task}": n for task, n in self.counts.items()})
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MixedDataModule)
        for task, count in self.counts.items():
            if count > max(ALWAYS_ALLOWED, self.limit * data.positions[task]):
                raise DataError(
                    f"{count} of {data.positions[task]} {task} samples so far could not be used, more than "
                    f"data.bad_limit={self.limit}; {self.path} names each with the reason. Fix the data, or raise "
                    "the limit and start again"
                )
