"""Evaluation during training: which measures run, when, and where their results go."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl

from callbacks.measures.measure import EvaluationContext, Measure, Result
from callbacks.measures.records import Record
from callbacks.measures.registry import EvaluationConfig
from callbacks.measures.running import EvaluationStoppedError, OutOfTimeError, on_all_ranks, run_measure
from callbacks.tracking import Tracker
from modules.checkpoints import CheckpointError
from modules.exchange import gathered
from modules.files import step_name

log = logging.getLogger(__name__)


class EvaluationCallback(pl.Callback):
    """Runs one measure during training, in full or on few samples.

    Training is not affected: modes, random states and losses stay as they are.
    """

    def __init__(
        self,
        measure: Measure,
        tracker: Tracker,
        config: EvaluationConfig,
        make_context: Callable[[pl.Trainer, pl.LightningModule], EvaluationContext],
        mini: Measure | None = None,
    ) -> None:
        """``measure`` runs at start, end and ``full_at``; ``mini``, if given, runs every ``every_n_steps``."""
        self.measure, self.tracker, self.config, self.make_context = measure, tracker, config, make_context
        self.mini = mini
        self._step = 0
        self._evaluated: set[tuple[int, str]] = set()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Check the benchmark's files, whatever ``fail_fast`` says, and evaluate the untrained model if asked to.

        A resumed run completes an evaluation of its first step that was cut short. A run that was told to stop skips
        it.
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
        """Evaluate at multiples of ``every_n_steps``, once per step, not on micro-steps that only accumulate."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._evaluate_if_due(trainer, module)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate the trained model, unless training stopped early and will be resumed.

        Lightning also calls this when a run resumes at its last step, after it was killed during this evaluation.
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
        except EvaluationStoppedError:  # on all ranks: records are kept, and the resumed run makes the rest
            trainer.should_stop = True
        except OutOfTimeError as late:
            log.warning("%s at step %d is left unfinished: %s", name, step, late)
            self.tracker.log(step, {f"{measure.prefix}/unfinished": 1})
        except CheckpointError:  # from a save: checkpoint.on_error, not fail_fast, decides whether training goes on
            raise
        except Exception:  # a failed measure must not end a run that took days
            if self.config.fail_fast:
                raise
            log.exception("EVALUATION FAILED: %s at step %d is left out, training goes on", name, step)
            self.tracker.log(step, {f"{measure.prefix}/error": 1})

    def _context(self, trainer: pl.Trainer, module: pl.LightningModule) -> EvaluationContext:
        module.to(trainer.strategy.root_device)  # at the end Lightning has moved it to the CPU
        return self.make_context(trainer, module)

    def _run(self, measure: Measure, context: EvaluationContext) -> None:
        name, started = measure.name, time.monotonic()
        if self.config.max_seconds:
            context = replace(context, deadline=started + self.config.max_seconds)

        def publish(result: Result, records: Sequence[Record]) -> None:
            if result.metrics:
                metrics = {f"{measure.prefix}/{key}": value for key, value in result.metrics.items()}
                self.tracker.log(context.step, metrics)
            measure.publish(context, records, self.tracker)
            if measure is self.measure:
                folder = context.records / name
                self.tracker.log_files(f"{name}-{step_name(context.step)}", "eval_predictions", folder)

        known = on_all_ranks(lambda: context.rank == 0 and measure.stored(context) is not None)
        if gathered(known)[0]:
            log.info("%s at step %d was evaluated before this resume", name, context.step)
            return
        run_measure(measure, context, publish=publish)
        log.info("%s at step %d took %.1f s", name, context.step, time.monotonic() - started)
