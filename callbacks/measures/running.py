"""Runs a measure on all ranks, without side effects on training."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from callbacks.measures.measure import EvaluationContext, Measure, Publish, Result
from modules.exchange import gathered

T = TypeVar("T")


class EvaluationStoppedError(Exception):
    """A signal told a rank to stop while it was generating; raised on all ranks."""


class OutOfTimeError(RuntimeError):
    """The deadline passed before all samples had a record; the records made so far are kept."""


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients. Afterwards every module's mode and every random state are restored."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def on_all_ranks(action: Callable[[], T]) -> T:
    """Run ``action`` and wait for the other ranks. If it fails on any rank, raise on all: none may wait forever."""
    failed = True
    try:
        result = action()
        failed = False
    finally:
        ranks = [rank for rank, other in enumerate(gathered(failed)) if other]
    if ranks:
        raise RuntimeError(f"evaluation failed on rank {', '.join(map(str, ranks))}; its own log says why")
    return result


def run_measure(
    measure: Measure,
    context: EvaluationContext,
    *,
    generate: bool = True,
    publish: Publish | None = None,
) -> Result | None:
    """Generate missing records, and score. All ranks must call it; rank 0 gets the result.

    Without ``generate``, all records must exist. ``publish`` is called on rank 0 with the result and its records.

    Raises:
        EvaluationStoppedError: a signal came while generating; the records made so far are kept.
        OutOfTimeError: the context's deadline passed before all records were made; on all ranks.
    """
    with isolated(context.model):
        if generate:
            on_all_ranks(lambda: None if context.rank else measure.prepare(context))
            if not all(gathered(on_all_ranks(lambda: measure.generate(context)))):
                raise EvaluationStoppedError(f"{measure.name} was told to stop")
            share = gathered(on_all_ranks(lambda: measure.done(context)))[0]
            if share < 1:
                raise OutOfTimeError(f"{measure.name} has {share:.0%} of its records when its time was up")
        on_all_ranks(lambda: measure.prepare_scoring(context))
        return on_all_ranks(lambda: None if context.rank else measure.score(context, publish))
