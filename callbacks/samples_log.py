"""Writes the keys of every micro-step taken to ``RUN/samples.jsonl``: what the model was trained on."""

import json
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl

from datamodules.mixed import MixedDataModule
from modules.exchange import gathered
from modules.json_lines import drop_torn_line
from modules.omnimamba.config import TASKS
from modules.run_files import SAMPLES_LOG


class SampleLog(pl.Callback):
    """Writes one line per micro-step and rank: {"step", "attempt", "rank", "mmu": [keys], "t2i": [keys]}.

    ``step`` is the optimizer step that the samples went into, counted from 1. Gathering the keys costs one collective
    per micro-step, so it is off unless ``data.log_samples`` is set.
    """

    def __init__(self, folder: Path, attempt: int) -> None:
        self.path = folder / SAMPLES_LOG
        self.attempt = attempt
        self._file: IO[str] | None = None
        self._pending: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the file, on rank 0."""
        if trainer.is_global_zero:
            drop_torn_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the keys, with the step they will go into."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MixedDataModule)
        places = batch["places"]
        mine = {task: data.keys(task, places[task]) if task in places else [] for task in TASKS}
        keys = gathered(mine)
        step = trainer.global_step + 1
        self._pending += [
            json.dumps({"step": step, "attempt": self.attempt, "rank": rank, **k}) + "\n" for rank, k in enumerate(keys)
        ]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Write the keys of the micro-step just taken."""
        if self._file is not None:
            self._file.writelines(self._pending)
            self._file.flush()
        self._pending = []

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
