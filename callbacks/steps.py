"""Optimizer steps as callbacks see them, and the commit of the data position."""

from typing import Any

import lightning.pytorch as pl

from datamodules.mixed import MixedDataModule


def step_taken(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the micro-step that just ended completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class CommitPosition(pl.Callback):
    """Advances the data position after each optimizer step. Must come before the callbacks that save the position."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Commit at optimizer-step boundaries."""
        if step_taken(trainer, i):
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, MixedDataModule)
            data.commit()
