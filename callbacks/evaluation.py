"""Evaluation during training: which measures, when, and what becomes of their results."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from callbacks.fid import Fid, FidConfig
from callbacks.gqa import Gqa, GqaConfig
from callbacks.measure import EvaluationContext, Measure, Result, exchange, isolated, on_all_ranks, run_measure
from callbacks.mme import Mme, MmeConfig
from callbacks.mmmu import Mmmu, MmmuConfig
from callbacks.pope import Pope, PopeConfig
from callbacks.records import Record
from callbacks.samples import Samples, SamplesConfig
from callbacks.tracking import Tracker
from callbacks.vqav2 import VqaV2, VqaV2Config

__all__ = [
    "TASKS",
    "EvaluationCallback",
    "EvaluationConfig",
    "EvaluationContext",
    "FidConfig",
    "GqaConfig",
    "Measure",
    "MmeConfig",
    "MmmuConfig",
    "PopeConfig",
    "Result",
    "SamplesConfig",
    "VqaV2Config",
    "build_measures",
    "isolated",
    "run_measure",
]

log = logging.getLogger(__name__)
TASKS = ("pope", "gqa", "vqav2", "mme", "mmmu", "fid", "samples")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When to evaluate and what; a measure that is null is not taken."""

    every_n_steps: int = 0
    """0: only at the start or end."""
    at_start: bool = False
    """Also before the first step: the untrained model is what everything is compared with."""
    at_end: bool = True
    batch_size: int = 16
    fail_fast: bool = False
    """Whether an error in an evaluation stops training; otherwise it is logged as ``eval/<measure>/error``."""
    pope: PopeConfig | None = None
    gqa: GqaConfig | None = None
    vqav2: VqaV2Config | None = None
    mme: MmeConfig | None = None
    mmmu: MmmuConfig | None = None
    fid: FidConfig | None = None
    samples: SamplesConfig | None = None

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = []
        if self.every_n_steps < 0:
            found.append(f"evaluation.every_n_steps={self.every_n_steps} must be 0 (only at start or end) or more")
        if self.batch_size < 1:
            found.append(f"evaluation.batch_size={self.batch_size} must be at least 1")
        for task in TASKS:
            section = getattr(self, task)
            if section is not None:
                found += [f"evaluation.{task}: {problem}" for problem in section.problems()]
        return found


def build_measures(config: EvaluationConfig) -> list[Measure]:
    """The configured measures, in a fixed order; nothing is read yet."""
    measures: list[Measure] = []
    if config.pope is not None:
        measures.append(Pope(config.pope))
    if config.gqa is not None:
        measures.append(Gqa(config.gqa))
    if config.vqav2 is not None:
        measures.append(VqaV2(config.vqav2))
    if config.mme is not None:
        measures.append(Mme(config.mme))
    if config.mmmu is not None:
        measures.append(Mmmu(config.mmmu))
    if config.fid is not None:
        measures.append(Fid(config.fid))
    if config.samples is not None:
        measures.append(Samples(config.samples))
    return measures


class EvaluationCallback(pl.Callback):
    """Takes one measure during training. Training does not notice: modes, random states and losses stay as they are."""

    def __init__(
        self,
        measure: Measure,
        tracker: Tracker,
        config: EvaluationConfig,
        make_context: Callable[[pl.Trainer, pl.LightningModule], EvaluationContext],
    ) -> None:
        self.measure, self.tracker, self.config, self.make_context = measure, tracker, config, make_context
        self._step = 0
        self._evaluated: int | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Check the benchmark's files, whatever ``fail_fast`` says; evaluate the untrained model if asked to.

        A run that resumes at a step whose evaluation was cut short makes up for it.
        """
        self._step = trainer.global_step
        self.measure.check(self.make_context(trainer, module))
        if self.config.at_start if self._step == 0 else self._due():
            self._evaluate(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Evaluate at multiples of ``every_n_steps``, once a step: not on a micro-step that only accumulates."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._due():
            self._evaluate(trainer, module)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate the trained model, unless training stops short of its end and will be resumed.

        Lightning calls this also where a run resumes at its last step, killed during this very evaluation.
        """
        if self.config.at_end and (trainer.max_steps < 0 or trainer.global_step >= trainer.max_steps):
            self._evaluate(trainer, module)

    def _due(self) -> bool:
        return bool(self.config.every_n_steps) and self._step % self.config.every_n_steps == 0

    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        step, name = trainer.global_step, self.measure.name
        if self._evaluated == step:
            return
        self._evaluated = step
        try:
            self._run(self.make_context(trainer, module))
        except Exception:  # whatever went wrong in a measure, a run of days is worth more than it
            if self.config.fail_fast:
                raise
            log.exception("EVALUATION FAILED: %s at step %d is left out, training goes on", name, step)
            self.tracker.log(step, {f"eval/{name}/error": 1})

    def _run(self, context: EvaluationContext) -> None:
        name, started = self.measure.name, time.monotonic()

        def publish(result: Result, records: Sequence[Record]) -> None:
            if result.metrics:
                self.tracker.log(context.step, {f"eval/{name}/{key}": value for key, value in result.metrics.items()})
            self.measure.publish(context, records, self.tracker)

        known = on_all_ranks(lambda: context.rank == 0 and self.measure.stored(context) is not None)
        if exchange(known)[0]:
            log.info("%s at step %d was evaluated before this resume", name, context.step)
            return
        run_measure(self.measure, context, publish=publish)
        log.info("%s at step %d took %.1f s", name, context.step, time.monotonic() - started)
