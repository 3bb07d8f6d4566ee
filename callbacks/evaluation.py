"""Evaluation during training: which measures, when, and what becomes of their results."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl

from callbacks.measures.answers import QuestionsConfig
from callbacks.measures.fid import Fid, FidConfig
from callbacks.measures.gqa import Gqa, GqaConfig
from callbacks.measures.measure import (
    EvaluationContext,
    EvaluationStoppedError,
    Measure,
    OutOfTimeError,
    Result,
    exchange,
    isolated,
    on_all_ranks,
    run_measure,
)
from callbacks.measures.mme import Mme, MmeConfig
from callbacks.measures.mmmu import Mmmu, MmmuConfig
from callbacks.measures.pope import Pope, PopeConfig
from callbacks.measures.records import Record
from callbacks.measures.samples import Samples, SamplesConfig
from callbacks.measures.speed import Speed, SpeedConfig
from callbacks.measures.vqav2 import VqaV2, VqaV2Config
from callbacks.tracking import Tracker
from modules.checkpoints import CheckpointError
from modules.files import step_name

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
    "SpeedConfig",
    "VqaV2Config",
    "build_measures",
    "build_mini_measures",
    "build_pairs",
    "isolated",
    "run_measure",
]

log = logging.getLogger(__name__)
MEASURES: dict[str, Callable[[Any], Measure]] = {
    "pope": Pope,
    "gqa": Gqa,
    "vqav2": VqaV2,
    "mme": Mme,
    "mmmu": Mmmu,
    "fid": Fid,
    "samples": Samples,
    "speed": Speed,
}
TASKS = tuple(MEASURES)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When to evaluate and what; a measure that is null is not taken."""

    every_n_steps: int = 0
    """Steps between evaluations; 0: only at the start or end."""
    mini: int = 0
    """Samples (of each split) of those in between; speed is none of them. 0: they are as large as the full ones."""
    full_at: tuple[int, ...] = ()
    """Steps at which the full evaluation is taken."""
    at_start: bool = False
    """The full one also before the first step: the untrained model is what everything is compared with."""
    at_end: bool = True
    max_seconds: float = 0.0
    """Most time that a measure may take to generate during training; what is missing then is left to
    pipelines.evaluate. 0: as long as it takes."""
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
    speed: SpeedConfig | None = None

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = []
        if self.every_n_steps < 0:
            found.append(f"evaluation.every_n_steps={self.every_n_steps} must be 0 (only at start or end) or more")
        if self.mini < 0 or self.mini == 1:
            found.append(f"evaluation.mini={self.mini} must be 0 (as large as the full evaluation) or at least 2")
        if any(step < 1 for step in self.full_at):
            found.append(f"evaluation.full_at={list(self.full_at)} must hold steps from 1 on")
        if not self.max_seconds >= 0:
            found.append(f"evaluation.max_seconds={self.max_seconds} must be 0 (as long as it takes) or more")
        if self.batch_size < 1:
            found.append(f"evaluation.batch_size={self.batch_size} must be at least 1")
        for task in TASKS:
            section = getattr(self, task)
            if section is not None:
                found += [f"evaluation.{task}: {problem}" for problem in section.problems()]
        return found


def build_mini_measures(config: EvaluationConfig) -> list[Measure]:
    """The measures of the evaluations in between, on at most ``config.mini`` samples each; none where that is 0."""
    if not config.mini:
        return []
    sections = {task: _reduced(getattr(config, task), config.mini) for task in TASKS}
    measures = build_measures(replace(config, **sections))
    for measure in measures:
        measure.mini = True
    return measures


def _reduced(section: Any, most: int) -> Any:
    """A measure's section for at most ``most`` samples; none for what a part of it would not tell."""
    if isinstance(section, VqaV2Config) and not section.annotations:
        return None  # EvalAI takes all answers or none
    if isinstance(section, QuestionsConfig):
        return replace(section, limit=most if section.limit is None else min(most, section.limit))
    if isinstance(section, FidConfig):
        return replace(section, n=min(most, section.n))
    return None if isinstance(section, SpeedConfig) else section


def build_measures(config: EvaluationConfig) -> list[Measure]:
    """The configured measures, in a fixed order; nothing is read yet."""
    sections = {task: getattr(config, task) for task in TASKS}
    return [MEASURES[task](section) for task, section in sections.items() if section is not None]


def build_pairs(config: EvaluationConfig) -> list[tuple[Measure, Measure | None]]:
    """Each full measure, and what is taken of it in between: its small form, itself where it has none, or nothing."""
    minis = {measure.task: measure for measure in build_mini_measures(config)}
    pairs: list[tuple[Measure, Measure | None]] = []
    for measure in build_measures(config):
        section = getattr(config, measure.task)
        whole = not config.mini or _reduced(section, config.mini) is section
        pairs.append((measure, measure if whole else minis.get(measure.task)))
    return pairs


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
