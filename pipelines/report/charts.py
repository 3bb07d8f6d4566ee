"""Draws curves as SVG with matplotlib. The page adds titles and legends, so no text of a run enters a chart."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from pipelines.report.read import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7b6300", "#56b4e9", "#e69f00", "#444444")
"""Okabe and Ito's colours, which colour-blind people can tell apart. Further runs reuse them with other dashes."""
DASHES = ("-", "--", ":", "-.")
MOST_POINTS = 400
"""A longer curve is drawn as means of neighbouring points, shaded from lowest to highest."""
FEW_POINTS = 12
"""A curve of at most this many points gets markers."""
LOG_RATIO = 20.0
"""If the values of a chart span more than this ratio, its axis is logarithmic, if that is allowed."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run's part of a chart."""

    index: int
    """Index of the run, which decides the colour."""
    curve: Curve
    restarts: Sequence[int] = ()
    """Steps at which the run resumed after an interruption."""
    errors: dict[int, float] = field(default_factory=dict)
    """Known standard errors, by step."""
    baseline: float | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn metric, and remarks on what is special about the drawing."""

    svg: str
    remarks: list[str]


def colour(index: int) -> str:
    """The colour of the run with this index."""
    return COLOURS[index % len(COLOURS)]


def draw(lines: Sequence[Line], salt: str, *, may_be_log: bool) -> Chart:
    """Draw the curves of one metric of all runs. ``salt`` must be unique on a page, because ids are made from it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        axes = figure.add_subplot()
        remarks = []
        if may_be_log and _spread([v for line in lines for v in line.curve.values]) > LOG_RATIO:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            axes.yaxis.set_minor_formatter(NullFormatter())
            remarks.append("logarithmic")
        binned = [_draw_line(axes, line) for line in lines]
        if most := max(binned, default=1):
            remarks += [f"a point is the mean of {most} logged values, shaded from lowest to highest"] * (most > 1)
        if any(line.restarts for line in lines):
            remarks.append("dotted: restarts")
        if any(line.curve.replaced for line in lines):
            remarks.append("faint: repeated by a later attempt")
        for value in sorted({line.baseline for line in lines if line.baseline is not None}):
            axes.axhline(value, color="#888888", linestyle="--", linewidth=1)
        if any(line.baseline is not None for line in lines):
            remarks.append("dashed grey: trivial baseline")
        if any(line.errors for line in lines):
            remarks.append("bars: ± standard error")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    return Chart(svg=_for_page(text.getvalue()), remarks=remarks)


def _draw_line(axes: "Axes", line: Line) -> int:
    """Draw one run and return how many logged values a point stands for."""
    tint, dash = colour(line.index), DASHES[line.index // len(COLOURS) % len(DASHES)]
    for step in line.restarts:
        axes.axvline(step, color=tint, linestyle=":", linewidth=1, alpha=0.7)
    each = -(-len(line.curve.steps) // MOST_POINTS)
    for old_steps, old_values in line.curve.replaced:
        steps, (values, _, _) = _thinned(old_steps, old_values, each)
        axes.plot(steps, values, color=tint, linewidth=0.9, alpha=0.4, marker="." if len(steps) <= FEW_POINTS else None)
    steps, (values, lows, highs) = _thinned(line.curve.steps, line.curve.values, each)
    if each > 1:
        axes.fill_between(steps, lows, highs, color=tint, alpha=0.2, linewidth=0)
    marker = "o" if len(steps) <= FEW_POINTS else None
    axes.plot(steps, values, color=tint, linewidth=1.3, linestyle=dash, marker=marker, markersize=4)
    known = [(step, value) for step, value in zip(steps, values, strict=True) if step in line.errors]
    if known:
        axes.errorbar(
            [step for step, _ in known],
            [value for _, value in known],
            [line.errors[step] for step, _ in known],
            fmt="none",
            ecolor=tint,
            capsize=3,
        )
    return each


def _thinned(
    steps: Sequence[int], values: Sequence[float], each: int
) -> tuple[list[int], tuple[list[float], list[float], list[float]]]:
    """For every ``each`` points: their middle step, and their mean, lowest and highest value."""
    parts = [slice(start, start + each) for start in range(0, len(steps), each)]
    middles = [steps[part][len(steps[part]) // 2] for part in parts]
    mean, low, high = ([_of(pick, values[part]) for part in parts] for pick in (fmean, min, max))
    return middles, (mean, low, high)


def _of(pick: Callable[[list[float]], float], values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return pick(finite) if finite else math.nan


def _spread(values: Sequence[float]) -> float:
    """Largest over smallest value; 0 if a value is not positive, because it has no logarithm."""
    finite = [value for value in values if math.isfinite(value)]
    return max(finite) / min(finite) if finite and min(finite) > 0 else 0.0


def _for_page(svg: str) -> str:
    """Strip what does not belong on a page: prologue, fixed size, page-wide styles, and repeated group ids."""
    svg = re.sub("<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'<g id="[^"]*"', "<g", svg)
