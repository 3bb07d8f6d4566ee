"""The list of all measures, and the configuration that says which to run and when."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from callbacks.measures.content import Content
from callbacks.measures.fid import Fid
from callbacks.measures.gqa import Gqa
from callbacks.measures.measure import Measure
from callbacks.measures.mme import Mme
from callbacks.measures.mmmu import Mmmu
from callbacks.measures.pope import Pope
from callbacks.measures.samples import Samples
from callbacks.measures.speed import Speed
from callbacks.measures.val import Val
from callbacks.measures.vqav2 import VqaV2

MEASURES: tuple[type[Measure], ...] = (Val, Pope, Gqa, VqaV2, Mme, Mmmu, Content, Fid, Samples, Speed)
"""All measures, in the order they run in. To add one, add it here and nowhere else: its section of the configuration,
``evaluation.<key>``, follows from it."""
KEYS = tuple(measure.key for measure in MEASURES)
C = TypeVar("C")


def _with_sections(cls: type[C]) -> type[C]:
    """Give ``cls``, which is not a dataclass yet, a field for each measure: its configuration, or null."""
    for measure in MEASURES:
        cls.__annotations__[measure.key] = measure.config_type | None
        setattr(cls, measure.key, None)
    return cls


@dataclass(frozen=True, kw_only=True)
@_with_sections
class EvaluationConfig:
    """When to evaluate, and what. Each measure has a section under its key; if it is null, the measure does not run."""

    every_n_steps: int = 0
    """Steps between evaluations. 0: only at the start or end."""
    mini: int = 0
    """Samples (of each split) of the evaluations in between, which leave out speed. 0: as many as the full ones."""
    full_at: tuple[int, ...] = ()
    """Steps at which the full evaluation runs."""
    at_start: bool = False
    """Run the full evaluation also before the first step, to compare with the untrained model."""
    at_end: bool = True
    """Run the full evaluation after the last step."""
    max_seconds: float = 0.0
    """How long a measure may generate during training; pipelines.evaluate can complete the rest. 0: as long as it
    takes."""
    batch_size: int = 16
    """Samples that are generated together, on each rank."""
    fail_fast: bool = False
    """Whether an error in an evaluation stops training. If not, it is logged as ``eval/<measure>/error``."""

    def section(self, kind: type[C]) -> C | None:
        """The section of type ``kind``, or None if that measure does not run."""
        return next((each for each in self.sections().values() if isinstance(each, kind)), None)

    def sections(self) -> dict[str, Any]:
        """The sections of the measures that run, by key."""
        return {key: section for key in KEYS if (section := getattr(self, key)) is not None}

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
        for key, section in self.sections().items():
            found += [f"evaluation.{key}: {problem}" for problem in section.problems()]
        return found


def schedule_of(config: EvaluationConfig, measure: Measure) -> EvaluationConfig:
    """``config`` with the measure's own ``every_n_steps``, if its section has one."""
    own = getattr(measure.config, "every_n_steps", 0)
    return replace(config, every_n_steps=own) if own else config


def build_measures(config: EvaluationConfig) -> list[Measure]:
    """The configured measures, in the order of `MEASURES`; nothing is read yet."""
    sections = config.sections()
    return [measure(sections[measure.key]) for measure in MEASURES if measure.key in sections]


def build_mini_measures(config: EvaluationConfig) -> list[Measure]:
    """The measures of the evaluations in between, on at most ``config.mini`` samples each; none if that is 0."""
    if not config.mini:
        return []
    whole = config.sections()
    measures = build_measures(replace(config, **{key: each.reduced(config.mini) for key, each in whole.items()}))
    for measure in measures:
        measure.mini = True
        measure.of_part = getattr(whole[measure.key], "limit", None) is not None
    return measures


def build_pairs(config: EvaluationConfig) -> list[tuple[Measure, Measure | None]]:
    """Each full measure, and what runs in between: its small form, the measure itself if it has none, or nothing."""
    minis = {measure.key: measure for measure in build_mini_measures(config)}
    pairs: list[tuple[Measure, Measure | None]] = []
    for measure in build_measures(config):
        complete = not config.mini or measure.config.reduced(config.mini) is measure.config
        pairs.append((measure, measure if complete else minis.get(measure.key)))
    return pairs
