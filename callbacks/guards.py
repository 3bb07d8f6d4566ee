"""Watches training for silent failures, and stops the run or reports them."""

import faulthandler
import logging
import math
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from callbacks.guard_config import ENOUGH, GuardConfig
from callbacks.steps import step_taken
from callbacks.tracking import Tracker
from datamodules.mixed import MixedDataModule
from modules.files import write_json
from modules.zero import ZeroStrategy

log = logging.getLogger(__name__)


class DivergedError(ValueError):
    """A loss or gradient is no longer finite; going on would only write it into every checkpoint."""


class NoGradientError(ValueError):
    """A parameter that the stage trains gets no gradient."""


class FiniteGuard(pl.Callback):
    """Stops the run before a non-finite gradient is used, and reports where it first appears.

    The gradient's norm is the same on all ranks, so all stop together. Reading it waits for the GPU once per step, just
    before the next step's work is queued. Under ZeRO the norm is known only after the update. The run stops then,
    before that update is saved.
    """

    def __init__(self, config: GuardConfig, tracker: Tracker, folder: Path) -> None:
        self.config, self.tracker, self.folder = config, tracker, folder
        self.norm = math.nan
        """Norm of the whole gradient of the last step, before clipping."""
        self._norms: deque[float] = deque(maxlen=config.spike_window)
        self._left_out: deque[int] = deque()
        self._batches: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        """The recent norms, so that a resumed run judges spikes like an uninterrupted one."""
        return {"norms": list(self._norms), "left_out": list(self._left_out)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self._norms.extend(state_dict["norms"])
        self._left_out.extend(state_dict["left_out"])

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the step's micro-batches, to search them if the gradient is not finite."""
        self._batches.append(batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check the gradient before clipping and before the update."""
        if isinstance(trainer.strategy, ZeroStrategy):
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(self.norm):
            self._stop(trainer, module, trainer.global_step + 1)
        if self.config.spike_sigma:
            self._leave_out_spike(trainer, module, self.norm)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Under ZeRO, check the gradient after the update."""
        if not step_taken(trainer, i):
            return
        if isinstance(trainer.strategy, ZeroStrategy):
            self.norm = trainer.strategy.gradient_norm()
            if not math.isfinite(self.norm):
                self._stop(trainer, module, trainer.global_step)
        self._batches = []

    def _stop(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MixedDataModule)
        keys = [{task: data.keys(task, at) for task, at in batch["places"].items()} for batch in self._batches]
        where = first_not_finite(module, self._batches)
        file = self.folder / f"not_finite_step{step}_rank{trainer.global_rank}.json"
        found = {"step": step, "rank": trainer.global_rank, "where": where, "samples": keys}
        try:
            write_json(file, found)
        except OSError as error:  # a full disk must not hide why the run ends
            log.warning("%s could not be written (%s): %s", file, error, found)
        raise DivergedError(
            f"the gradient of step {step} is not finite: training diverged and is stopped before it is used. First "
            f"seen in {where}; the step's samples are in {file}, next to those of other ranks. Start again from an "
            "earlier checkpoint with a lower optim.lr or a longer optim.warmup_steps"
        )

    def _leave_out_spike(self, trainer: pl.Trainer, module: pl.LightningModule, norm: float) -> None:
        step = trainer.global_step + 1
        usual = len(self._norms) >= ENOUGH
        limit = math.inf
        if usual:
            limit = statistics.fmean(self._norms) + self.config.spike_sigma * statistics.pstdev(self._norms)
        if norm <= limit:
            self._norms.append(norm)
            return
        while self._left_out and self._left_out[0] <= step - self.config.spike_window:
            self._left_out.popleft()
        self._left_out.append(step)
        if len(self._left_out) > self.config.spike_limit:
            raise DivergedError(
                f"{len(self._left_out)} updates within {self.config.spike_window} steps were left out for their "
                f"gradient norm, more than guards.spike_limit={self.config.spike_limit}: training does not recover. "
                "Start again from an earlier checkpoint with a lower optim.lr"
            )
        for parameter in module.parameters():
            parameter.grad = None  # an optimizer skips parameters without a gradient
        if trainer.is_global_zero:
            log.warning("step %d: gradient norm %.3g is above %.3g; its update is left out", step, norm, limit)
        self.tracker.log(step, {"guards/spike_norm": norm, "guards/spikes_left_out": len(self._left_out)})


class GradientGuard(pl.Callback):
    """Stops a run if a trained parameter gets no gradient in the first step: it would silently stay as it is."""

    def __init__(self) -> None:
        self._missing: dict[str, nn.Parameter] = {}
        self._hooks: list[Any] = []
        self._armed = True

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch with hooks during this attempt's first step, because ZeRO leaves no gradients to look at."""
        if not self._armed:
            return
        self._armed = False
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._missing[name] = parameter
                self._hooks.append(torch.Tensor.register_hook(parameter, self._seen(name)))  # type: ignore[no-untyped-call]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Name the parameters that got no gradient."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if missing := sorted(self._missing):
            self._missing = {}
            raise NoGradientError(
                f"{len(missing)} parameters that this stage trains got no gradient, for example {missing[0]}: "
                "they would not be trained. Freeze them with stage.freeze, or fix the model"
            )

    def _seen(self, name: str) -> Any:
        def hook(_gradient: Tensor) -> None:
            self._missing.pop(name, None)

        return hook


class HangGuard(pl.Callback):
    """Writes the stacks of all threads to standard error if no step completes for too long."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the timer."""
        self._wait()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Restart the timer. Must come before the other callbacks, so that their time counts toward the next step."""
        self._wait()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Stop the timer."""
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()

    def _wait(self) -> None:
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, repeat=True, file=sys.__stderr__ or sys.stderr)


def first_not_finite(module: nn.Module, batches: Sequence[Any]) -> str:
    """The first part of the model with a non-finite output for one of ``batches``, or a hint where else to look."""
    found: list[str] = []
    with _watching(module, found), torch.no_grad():
        for batch in batches:
            module.training_step(batch, 0)  # type: ignore[operator]
    if found:
        return found[0]
    odd = [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return (
        "the backward pass or on another rank, this one's forward pass being finite "
        f"(gradient of {odd[-1] if odd else 'an unknown parameter'})"
    )


@contextmanager
def _watching(module: nn.Module, found: list[str]) -> Iterator[None]:
    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            for value in outputs if isinstance(outputs, tuple | list) else [outputs]:
                if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                    found.append(name)
                    return

        return hook

    hooks = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
