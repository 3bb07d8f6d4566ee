"""What was logged, as curves over steps, samples or hours: that of a run, or of a file kept to compare runs with."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from modules.json_lines import read_rows
from modules.reading import read_text, shown

METRIC_KEYS = {"step": Annotated[int, Ge(0), Le(2**53)], "attempt": Annotated[int, Ge(0), Le(2**53)]}
CSV_HEAD = ("step", "key", "value")
Axis = Literal["step", "samples", "hours"]
AXES: tuple[Axis, ...] = ("step", "samples", "hours")
_HUGE = 1e300
"""Larger numbers count as not finite: the width of their chart would not be."""
_MOST_KEYS_SHOWN = 5


@dataclass(frozen=True)
class Curve:
    """One metric over steps; NaN if it was not finite."""

    steps: list[int]
    values: list[float]
    attempts: list[int]
    """The attempt that logged each value."""
    replaced: dict[int, tuple[list[int], list[float]]]
    """Values that a later attempt logged again: (steps, values) by attempt."""

    @property
    def changes(self) -> bool:
        """Whether it has several values, so that there is something to draw."""
        return len({value for value in self.values if math.isfinite(value)}) > 1


@dataclass(kw_only=True)
class Log:
    """All that was logged."""

    curves: dict[str, Curve] = field(default_factory=dict)
    first_steps: dict[int, int] = field(default_factory=dict)
    """The first step that each attempt logged."""
    last_step: int | None = None
    last_time: float | None = None
    hours: dict[tuple[int, int], float] = field(default_factory=dict)
    """Hours that the run had worked at a step of an attempt. The time between attempts does not count."""
    began: dict[int, float] = field(default_factory=dict)
    """Hours that it had worked when an attempt began."""
    odd: set[str] = field(default_factory=set)
    """Keys whose values are not numbers."""

    def x(self, axis: Axis, step: int, attempt: int) -> float:
        """Where a step of an attempt lies on ``axis``; NaN if that is unknown."""
        if axis == "hours":
            return self.hours.get((step, attempt), math.nan)
        if axis == "samples":
            steps, samples = self._samples
            return float(np.interp(step, steps, samples)) if samples else math.nan
        return float(step)

    @cached_property
    def _samples(self) -> tuple[list[int], list[float]]:
        """Steps, and the samples of all tasks trained on until then."""
        used = [curve for name, curve in self.curves.items() if name.startswith("data/samples_")]
        if not used:
            return [], []
        totals: dict[int, float] = defaultdict(float)
        for curve in used:
            for step, value in zip(curve.steps, curve.values, strict=True):
                totals[step] += value
        known = [step for step in sorted(totals) if math.isfinite(totals[step])]
        return [0, *known], [0.0, *(totals[step] for step in known)]


def collect(rows: Iterable[Mapping[str, Any]], started: Mapping[int, float]) -> Log:
    """The log that ``rows`` of metrics.jsonl make; ``started`` is the time at which each attempt began, if known."""
    log = Log()
    values: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    times: dict[tuple[int, int], float] = {}
    for row in rows:
        step, attempt = row["step"], row["attempt"]
        log.first_steps.setdefault(attempt, step)
        log.last_step = max(step, log.last_step or 0)
        if math.isfinite(time := finite(row.get("time"))):
            log.last_time = max(time, log.last_time or 0.0)
            times.setdefault((step, attempt), time)
        for name, value in row.items():
            if name in ("step", "time", "attempt"):
                continue
            if value is None or isinstance(value, int | float):
                values[name][step][attempt] = finite(value)
            else:
                log.odd.add(name)
    log.curves = {name: _curve(steps) for name, steps in values.items()}
    _work(log, times, started)
    return log


def finite(value: Any) -> float:
    """``value`` as a number; NaN if it is none, or too large for a chart."""
    return float(value) if isinstance(value, int | float) and -_HUGE < value < _HUGE else math.nan


def _curve(steps: dict[int, dict[int, float]]) -> Curve:
    """The curve of one metric; if several attempts logged a step, the last attempt counts."""
    order = sorted(steps)
    replaced: dict[int, tuple[list[int], list[float]]] = {}
    for step in order:
        for attempt in sorted(steps[step])[:-1]:
            of_attempt = replaced.setdefault(attempt, ([], []))
            of_attempt[0].append(step)
            of_attempt[1].append(steps[step][attempt])
    attempts = [max(steps[step]) for step in order]
    values = [steps[step][attempt] for step, attempt in zip(order, attempts, strict=True)]
    return Curve(order, values, attempts, replaced)


def _work(log: Log, times: Mapping[tuple[int, int], float], started: Mapping[int, float]) -> None:
    """Fill in the hours: each attempt goes on where the one before it ended."""
    worked = 0.0
    for attempt in sorted(log.first_steps):
        of_attempt = {key: time for key, time in times.items() if key[1] == attempt}
        if not of_attempt:
            continue
        first = min(of_attempt.values())
        start = min(started.get(attempt, first), first)
        log.began[attempt] = worked
        log.hours |= {key: worked + (time - start) / 3600 for key, time in of_attempt.items()}
        worked += (max(of_attempt.values()) - start) / 3600


def read_reference(path: Path) -> Log:
    """The log in a metrics.jsonl, or in a CSV file with the columns step, key, value.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not as it must be, or nothing is in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--reference {path} {'is no file' if path.exists() else 'does not exist'}")
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else list(read_rows(path, METRIC_KEYS))
    log = collect(rows, {})
    if not log.curves:
        raise ValueError(f"--reference {path} holds no values; name a metrics.jsonl, or a CSV file step,key,value")
    return log


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    what = f"reference {path}"
    lines = csv.reader(io.StringIO(read_text(path, "reference")), strict=True)
    rows: list[dict[str, Any]] = []
    try:
        if (head := tuple(next(lines, []))) != CSV_HEAD:
            raise ValueError(f"{what} begins with {shown(','.join(head))}, expected {','.join(CSV_HEAD)}")
        rows += [_csv_row(cells, f"line {lines.line_num} of {what}") for cells in lines if cells]
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num} of {what} is not CSV ({error})") from error
    return rows


def _csv_row(cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(CSV_HEAD):
        raise ValueError(f"{where} has {len(cells)} cells, expected {len(CSV_HEAD)}: {','.join(CSV_HEAD)}")
    step, key, value = cells
    if not (step.isascii() and step.isdigit() and int(step) <= 2**53):
        raise ValueError(f"{where}: step is {shown(step)}, expected a whole number from 0 on")
    try:
        return {"step": int(step), "attempt": 1, key: float(value)}
    except ValueError:
        raise ValueError(f"{where}: value is {shown(value)}, expected a number") from None


def refuse_foreign(reference: Log, names: Iterable[str], path: Path) -> None:
    """Raise ValueError if ``reference`` holds none of the logged ``names``: it would be drawn nowhere."""
    if not reference.curves.keys() & set(names):
        some = ", ".join(list(reference.curves)[:_MOST_KEYS_SHOWN])
        raise ValueError(
            f"--reference {path} holds {some}, none of which the runs logged; name the keys as in their metrics.jsonl"
        )
