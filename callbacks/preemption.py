"""Stops a run cleanly when it receives a signal: all ranks stop after the same step, which is then saved."""

from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from callbacks.steps import step_taken
from modules import signals


class Preemption(pl.Callback):
    """Sets ``trainer.should_stop`` on all ranks after the same optimizer step, once any of them received a signal.

    The other callbacks decide what to save and what to skip: `Checkpointing` saves at the end of training, and
    evaluations wait for the resume.

    The ranks agree over gloo, in the background of the next step. After each step a rank hands in its flag and reads
    the result of the previous step. So nothing waits for a GPU, no rank waits for a slower one, and all ranks read the
    same answer. A run can stop at every step. The price is one more step after a signal.
    """

    def __init__(self, timeout: timedelta) -> None:
        """``timeout`` is how long one rank waits for another at most."""
        self._timeout = timeout
        self._group: dist.ProcessGroup | None = None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Turn off Lightning's own handling of signals."""
        _leave_signals_alone(trainer)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stop before the first step if a signal came while the run was loading."""
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
            self._hand_in()
        if self._asked():
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Stop when a step is complete."""
        if step_taken(trainer, i) and self._asked():
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Wait for the last collective."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def _asked(self) -> bool:
        """Whether any rank had received a signal when the flags were last handed in. Without other ranks: whether this
        one has received one."""
        if self._pending is None:
            return signals.received() is not None
        self._pending.wait()
        asked = bool(self._flag.item())
        self._hand_in()
        return asked

    def _hand_in(self) -> None:
        self._flag.fill_(signals.received() is not None)
        self._pending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)


def _leave_signals_alone(trainer: pl.Trainer) -> None:
    """Undo Lightning's own handling of SIGTERM, which has no switch.

    Its handler broadcasts, which hangs when only one rank receives the signal. It also broadcasts a tensor at every
    micro-step, and waits for the device to read it.
    """
    connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
    for owner, name in ((connector, "register_signal_handlers"), (loop, "_broadcast_sigterm_tensor")):
        if not hasattr(owner, name):
            raise AttributeError(
                f"{type(owner).__name__}.{name} is gone: this version of Lightning is not the pinned one"
            )
        setattr(owner, name, lambda: None)
