"""Trains as ``pipelines.train`` does, but a rank may fail on its way: ``FAILS="1 ValueError"``.

Tests run it by -m. ``LINGERS`` is how many seconds rank 0 has still to do when it is told of an error.
"""

import os
import time
from typing import Any

import lightning.pytorch as pl

from callbacks.launched import LaunchedRanks
from pipelines.run.console import run_verb
from pipelines.train import main

MESSAGE = "the shard is damaged"
ERRORS = {"ValueError": ValueError, "RuntimeError": RuntimeError}
on_exception = LaunchedRanks.on_exception


def fail(_self: LaunchedRanks, trainer: pl.Trainer, *_: Any) -> None:
    """The rank of ``FAILS`` raises what it names after step 2."""
    rank, _, error = os.environ.get("FAILS", "").partition(" ")
    if str(trainer.global_rank) == rank and trainer.global_step == 2:
        raise ERRORS[error](MESSAGE)


def linger(self: LaunchedRanks, trainer: pl.Trainer, *arguments: Any) -> None:
    """Rank 0 is told of an error, and stays busy."""
    on_exception(self, trainer, *arguments)
    if trainer.global_rank == 0:
        time.sleep(float(os.environ.get("LINGERS", "0")))


if __name__ == "__main__":
    LaunchedRanks.on_train_batch_end, LaunchedRanks.on_exception = fail, linger
    run_verb(main)
