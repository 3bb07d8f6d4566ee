"""All logged numbers by section of the page: charts, and lines of text for what was logged once or never changed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from modules.unheard import unheard
from pipelines.report.charts import REFERENCE, Line, draw, remarks
from pipelines.report.curves import AXES, Curve, Log
from pipelines.report.read import Progress, Run
from pipelines.report.tables import number

EVALUATION = "Evaluation"
SECTIONS = (
    ("Losses", r"train/loss|eval/val/"),
    (EVALUATION, r"eval(_mini)?/"),
    ("Speed and memory", r".*(_per_s|mfu|tflops|_gib|util|mem|wait|seconds|_s$)"),
    ("Optimisation", r"train/|optim/|guards/|grad_norm/|param_norm/"),
    ("Data", r"data/"),
    ("Other", r""),
)
"""Headings, each with the pattern of its metrics; the first match wins."""
_NOISY = re.compile(r"train/(loss|grad_norm|tokens)|grad_norm/|system/(data_wait|model_tflops|mfu)")
"""What is drawn with a smoothed line."""
_MAY_BE_LOG = re.compile(r"train/loss|eval|.*norm")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A kept curve to compare runs with."""

    path: Path
    log: Log


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A number of some runs: a chart with its texts, or only texts if it has one value in each run."""

    name: str
    charts: dict[str, Markup | None]
    """The chart over each axis, None if that axis is unknown; empty without a chart."""
    remarks: str
    values: list[tuple[int, str]]
    """Index of the run, and the first and last value of its curve."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Panels under one heading; ``details`` are those of single splits and types."""

    title: str
    """Name of the measure; empty outside of the evaluation."""
    panels: list[Panel] = field(default_factory=list)
    details: list[Panel] = field(default_factory=list)


def sections(runs: Sequence[Run], reference: Reference | None, progress: Progress = unheard) -> dict[str, list[Block]]:
    """All numbers of all runs, by heading."""
    names = sorted({name for run in runs for name in run.log.curves})
    found: dict[str, dict[str, Block]] = {heading: {} for heading, _ in SECTIONS}
    for done, name in enumerate(names):
        progress("draw charts", done, len(names))
        heading = next(heading for heading, pattern in SECTIONS if re.match(pattern, name))
        panel = _panel(name, runs, reference)
        if not panel.charts and _in_results(name, runs):
            continue  # the table of results says it
        title = name.split("/")[1] if heading == EVALUATION else ""
        block = found[heading].setdefault(title, Block(title=title))
        # eval/<measure>/<metric>, eval_mini/<measure>/<metric>: a slash in the metric marks a detail
        is_detail = heading == EVALUATION and name.count("/") > 2
        (block.details if is_detail else block.panels).append(panel)
    return {heading: list(blocks.values()) for heading, blocks in found.items() if blocks}


def _panel(name: str, runs: Sequence[Run], reference: Reference | None) -> Panel:
    lines: list[Line] = []
    values: list[tuple[int, str]] = []
    for index, run in enumerate(runs):
        if (curve := run.log.curves.get(name)) is not None:
            errors, baseline = _known(run, name)
            restarts = run.restarts()
            lines.append(
                Line(index=index, curve=curve, log=run.log, restarts=restarts, errors=errors, baseline=baseline)
            )
            values.append((index, _told(curve)))
    kept = None if reference is None else reference.log.curves.get(name)
    if kept is not None and reference is not None:
        lines.append(Line(index=REFERENCE, curve=kept, log=reference.log))
        values.append((REFERENCE, _told(kept)))
    style = {"may_be_log": bool(_MAY_BE_LOG.match(name)), "smooth": bool(_NOISY.match(name))}
    is_chart = any(line.curve.changes for line in lines)
    drawn = {axis: draw(lines, axis, **style) for axis in AXES} if is_chart else {}
    return Panel(
        name=name,
        charts={axis: None if svg is None else Markup(svg) for axis, svg in drawn.items()},  # numbers and our own words
        remarks="; ".join(remarks(lines, **style)) if is_chart else "",
        values=values,
    )


def _told(curve: Curve) -> str:
    """The first and last value of a curve."""
    first, last = number(curve.values[0]), number(curve.values[-1])
    if len(curve.values) == 1:
        return f"{first} at step {curve.steps[0]}"
    return f"{first} → {last}" if curve.changes else f"{first} at all {len(curve.values)} logged steps"


def _results_of(run: Run, name: str) -> tuple[dict[int, dict[str, Any]], str]:
    """The results that hold the metric logged as ``name``, by step, and what it is called there."""
    prefix, measure, metric = [*name.split("/", 2), "", ""][:3]
    measure += "_mini" if prefix == "eval_mini" else ""
    results = {step: found[measure] for step, found in run.results.items() if measure in found}
    return (results if prefix.startswith("eval") else {}), metric


def _in_results(name: str, runs: Sequence[Run]) -> bool:
    """Whether the results of each run that logged ``name`` hold it, too."""
    found = [_results_of(run, name) for run in runs if name in run.log.curves]
    return all(results and metric in results[max(results)]["metrics"] for results, metric in found)


def _known(run: Run, name: str) -> tuple[dict[int, float], float | None]:
    """Standard errors by step and the trivial baseline of a measure's metric."""
    results, metric = _results_of(run, name)
    if not results:
        return {}, None
    errors = {step: result["standard_errors"].get(metric) for step, result in results.items()}
    baseline = results[max(results)]["baselines"].get(metric)
    return {step: error for step, error in errors.items() if error}, baseline
