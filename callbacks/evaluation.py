"""Evaluation during training: which measures, when, and what becomes of their results."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl

from callbacks.measures.measure import EvaluationContext, Measure, Result
from callbacks.measures.records import Record
from callbacks.measures.registry import EvaluationConfig
from callbacks.measures.running import EvaluationStoppedError, OutOfTimeError, exchange, on_all_ranks, run_measure
from callbacks.tracking import Tracker
from modules.checkpoints import CheckpointError
from modules.files import step_name

log = logging.getLogger(__name__)


class EvaluationCallback(pl.Callback):
    """Takes one measure during training, in full or on few samples.

    Training does not notice: modes, random states and losses stay as they are.
    """

    def __init__(
        self,
        measure: Measure,
        tracker: Tracker,
        config: EvaluationConfig,
        make_context: Callable[[pl.Trainer, pl.LightningModule], EvaluationContext],
        mini: Measure | None = None,
    ) -> None:
        """``measure`` is taken at start, end and ``full_at``; ``mini``, if one is given, every_n_steps."""
        self.measure, self.tracker, self.config, self.make_context = measure, tracker, config, make_context
        self.mini = mini
        self._step = 0
        self._evaluated: set[tuple[int, str]] = set()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Check the benchmark's files, whatever ``fail_fast`` says; evaluate the untrained model if asked to.

        A run that resumes at a step whose evaluation was cut short makes up for it, one that is told to stop leaves it.
        """
        self._step = trainer.global_step
        context = self.make_context(trainer, module)
        self.measure.check(context)
        if self.mini is not None and self.mini is not self.measure:
            self.mini.check(context)
        if self._step:
            self._evaluate_if_due(trainer, module)
        elif self.config.at_start:
            self._evaluate(self.measure, trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        """Evaluate at multiples of ``every_n_steps``, once a step: not on a micro-step that only accumulates."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._evaluate_if_due(trainer, module)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate the trained model, unless training stops short of its end and will be resumed.

        Lightning calls this also where a run resumes at its last step, killed during this very evaluation.
        """
        if trainer.global_step < trainer.max_steps:
            return
        if self.config.at_end:
            self._evaluate(self.measure, trainer, module)
        self._step = trainer.global_step
        self._evaluate_if_due(trainer, module)

    def _evaluate_if_due(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._step in self.config.full_at:
            self._evaluate(self.measure, trainer, module)
        if self.mini is not None and self.config.every_n_steps and self._step % self.config.every_n_steps == 0:
            self._evaluate(self.mini, trainer, module)

    def _evaluate(self, measure: Measure, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        step, name = trainer.global_step, measure.name
        if (step, name) in self._evaluated or trainer.should_stop:
            return
        self._evaluated.add((step, name))
        try:
            context = on_all_ranks(lambda: self._context(trainer, module))
            self._run(measure, context)
        except EvaluationStoppedError:  # on all ranks: what is there is kept, and the resumed run makes the rest
            trainer.should_stop = True
        except OutOfTimeError as late:
            log.warning("%s at step %d is left unfinished: %s", name, step, late)
            self.tracker.log(step, {f"{self._prefix(measure)}/unfinished": 1})
        except CheckpointError:  # a save's: whether training goes on beside it is checkpoint.on_error's to say
            raise
        except Exception:  # whatever went wrong in a measure, a run of days is worth more than it
            if self.config.fail_fast:
                raise
            log.exception("EVALUATION FAILED: %s at step %d is left out, training goes on", name, step)
            self.tracker.log(step, {f"{self._prefix(measure)}/error": 1})

    def _context(self, trainer: pl.Trainer, module: pl.LightningModule) -> EvaluationContext:
        module.to(trainer.strategy.root_device)  # at the end Lightning has moved it to the CPU
        return self.make_context(trainer, module)

    def _prefix(self, measure: Measure) -> str:
        """What stands before a measure's keys: what few samples say never shares a key with the full measure."""
        if measure is self.measure:
            return f"eval/{measure.name}"
        return f"eval_mini/{measure.name.removesuffix('_mini')}"

    def _run(self, measure: Measure, context: EvaluationContext) -> None:
        name, started = measure.name, time.monotonic()
        if self.config.max_seconds:
            context = replace(context, deadline=started + self.config.max_seconds)

        def publish(result: Result, records: Sequence[Record]) -> None:
            if result.metrics:
                prefix = self._prefix(measure)
                self.tracker.log(context.step, {f"{prefix}/{key}": value for key, value in result.metrics.items()})
            measure.publish(context, records, self.tracker)
            if measure is self.measure:
                folder = context.records / name
                self.tracker.log_files(f"{name}-{step_name(context.step)}", "eval_predictions", folder)

        known = on_all_ranks(lambda: context.rank == 0 and measure.stored(context) is not None)
        if exchange(known)[0]:
            log.info("%s at step %d was evaluated before this resume", name, context.step)
            return
        run_measure(measure, context, publish=publish)
        log.info("%s at step %d took %.1f s", name, context.step, time.monotonic() - started)
