"""Norms of the trained parts: which part learns, which one diverges, whether the scan drifts."""

import re

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.steps import step_taken
from modules.trainable import part_of
from modules.zero import ZeroStrategy

SCALES = ("A_log", "dt_bias")
"""The scan's own parameters, by the last word of their names: they set its time scales."""


class PartNorms(pl.Callback):
    """At steps that are logged: ``grad_norm/<part>`` before clipping, and ``param_norm/<name>`` over all layers.

    Every rank holds the same gradients by then, so rank 0 computes alone, without communication. ZeRO shards gradients
    (level 2) and parameters (level 3). Norms of what is sharded are left out; ``train/grad_norm`` is still logged.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every = every_n_steps
        self._found: dict[str, Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Compute the norms of the gradients. They are queued on the device; nothing waits for them until `look`."""
        self._found = {}
        if isinstance(trainer.strategy, ZeroStrategy) or not self._due(trainer, trainer.global_step + 1):
            return
        parts: dict[str, list[Tensor]] = {}
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                parts.setdefault(slug(part_of(name.removeprefix("model."))), []).append(parameter.grad)
        for part, gradients in parts.items():
            self._found[f"grad_norm/{part}"] = torch.nn.utils.get_total_norm(gradients)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, out: object, batch: object, i: int
    ) -> None:
        """Compute the norms of the scan's parameters after the step."""
        whole = not (isinstance(trainer.strategy, ZeroStrategy) and trainer.strategy.level == 3)
        if not (step_taken(trainer, i) and whole and self._due(trainer, trainer.global_step)):
            return
        for scale in SCALES:
            values = [p.detach() for name, p in module.named_parameters() if name.rsplit(".", 1)[-1] == scale]
            if values:
                self._found[f"param_norm/{scale}"] = torch.nn.utils.get_total_norm(values)

    def look(self) -> dict[str, float]:
        """The norms of the step just taken, in one transfer from the device."""
        found, self._found = self._found, {}
        if not found:
            return {}
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))

    def _due(self, trainer: pl.Trainer, step: int) -> bool:
        return trainer.is_global_zero and step % self.every == 0


def slug(part: str) -> str:
    """A part's name in the form used in metric names, for example ``mamba_2_blocks``."""
    return re.sub(r"\W+", "_", part.lower())
