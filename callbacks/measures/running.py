"""Runs a measure on all ranks, without leaving a trace in training."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn

from callbacks.measures.measure import EvaluationContext, Measure, Publish, Result

T = TypeVar("T")


class EvaluationStoppedError(Exception):
    """A signal asked a rank to stop while it generated; raised on all ranks."""


class OutOfTimeError(RuntimeError):
    """The deadline came before all samples had their record; those that have one are kept."""


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and every random state are as before."""
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


def exchange(value: T) -> list[T]:
    """``value`` of every rank, in order; waits for all of them."""
    if not distributed.is_available() or not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def on_all_ranks(action: Callable[[], T]) -> T:
    """Run ``action`` and wait for the others; raises on every rank if it fails on any, so that none waits for ever."""
    failed = True
    try:
        result = action()
        failed = False
    finally:
        ranks = [rank for rank, other in enumerate(exchange(failed)) if other]
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
    """Generate what records are missing, and score; all ranks call it, rank 0 gets the result.

    Without ``generate`` the records must be there. ``publish`` is called on rank 0 with the result and its records.

    Raises:
        EvaluationStoppedError: a signal came meanwhile; what was generated is kept.
        OutOfTimeError: the context's deadline came first; on all ranks.
    """
    with isolated(context.model):
        if generate:
            on_all_ranks(lambda: None if context.rank else measure.prepare(context))
            if not all(exchange(on_all_ranks(lambda: measure.generate(context)))):
                raise EvaluationStoppedError(f"{measure.name} was told to stop")
            share = exchange(on_all_ranks(lambda: measure.done(context)))[0]
            if share < 1:
                raise OutOfTimeError(f"{measure.name} has {share:.0%} of its records after its time was up")
        on_all_ranks(lambda: measure.prepare_scoring(context))
        return on_all_ranks(lambda: None if context.rank else measure.score(context, publish))
