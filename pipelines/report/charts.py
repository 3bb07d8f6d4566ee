"""Draws curves as SVG. The page adds titles, legends and colours, so no text of a run enters a chart.

Coordinates are pixels of a chart of `WIDTH` x `HEIGHT`, which the page scales. Whatever belongs to run i is of the
class ``of-i``, and a kept curve of the class ``of-ref``; the page's style gives classes their colours.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pipelines.report.curves import Axis, Curve, Log
from pipelines.report.scales import Scale, linear_scale, log_scale, short
from pipelines.report.tables import number

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 8, 164
REFERENCE = -1
"""Index of the kept curve."""
MOST_POINTS = 400
"""A longer curve is drawn as means of neighbouring points, shaded from lowest to highest."""
FEW_POINTS = 12
"""A curve of at most this many points gets markers, and no smoothed line."""
SMOOTHED_SHARE = 0.08
"""A point of the smoothed line is the mean over this share of a curve's points."""
LOG_RATIO = 20.0
"""If the values of a chart span more than this ratio, its axis is logarithmic, if that is allowed."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run's part of a chart."""

    index: int
    """Index of the run, which decides the colour, or `REFERENCE`."""
    curve: Curve
    log: Log
    """What the curve is from; it knows where a step lies on an axis."""
    restarts: Sequence[tuple[int, int]] = ()
    """(step, attempt) of each resume after an interruption."""
    errors: dict[int, float] = field(default_factory=dict)
    """Known standard errors, by step."""
    baseline: float | None = None


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points of a line: means of neighbours if there are too many; ``low`` and ``high`` bound what was logged."""

    steps: list[int]
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    each: int
    """How many logged values a point stands for."""


def class_of(index: int) -> str:
    """The class of what belongs to a run, or to the kept curve."""
    return "of-ref" if index == REFERENCE else f"of-{index}"


def remarks(lines: Sequence[Line], *, may_be_log: bool, smooth: bool) -> list[str]:
    """What is special about the drawing of ``lines``."""
    most = max((-(-len(line.curve.steps) // MOST_POINTS) for line in lines), default=1)
    special = {
        "logarithmic": _is_log(lines, may_be_log),
        "strong: mean over neighbouring points": any(_is_smoothed(line, smooth) for line in lines),
        f"a point is the mean of {most} logged values, shaded from lowest to highest": most > 1,
        "dotted: restarts": any(line.restarts for line in lines),
        "faint: repeated by a later attempt": any(line.curve.replaced for line in lines),
        "dashed grey: trivial baseline": any(line.baseline is not None for line in lines),
        "bars: ± standard error": any(line.errors for line in lines),
    }
    return [text for text, holds in special.items() if holds]


def draw(lines: Sequence[Line], axis: Axis, *, may_be_log: bool, smooth: bool) -> str | None:
    """Draw the curves of one metric of all runs over ``axis``; None if it is unknown where their points lie."""
    drawn = [(line, _points(line, axis)) for line in lines]
    xs = [x for _, points in drawn for x in points.x if math.isfinite(x)]
    if not xs:
        return None
    log = _is_log(lines, may_be_log)
    across = linear_scale([*xs, 0.0] if axis == "hours" else xs, LEFT, RIGHT, whole=axis != "hours", ticks=5, room=0)
    # a bar that reaches down to nothing would stretch a logarithmic axis without end; there it is cut
    up = log_scale(_all_values(drawn), BOTTOM, TOP) if log else linear_scale(_all_values(drawn, bars=True), BOTTOM, TOP)
    baselines = sorted({line.baseline for line in lines if line.baseline is not None})
    parts = [_grid(across, up, axis)]
    parts += [f'<path class="baseline" d="M{LEFT} {up(value):.1f}H{RIGHT}"/>' for value in baselines]
    parts += [_draw_line(line, points, across, up, axis, smooth=smooth) for line, points in drawn]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-axis="{axis}">{"".join(parts)}</svg>'


def _is_log(lines: Sequence[Line], may_be_log: bool) -> bool:
    return may_be_log and _spread([value for line in lines for value in line.curve.values]) > LOG_RATIO


def _is_smoothed(line: Line, smooth: bool) -> bool:
    return smooth and line.index != REFERENCE and len(line.curve.steps) > FEW_POINTS


def _spread(values: Sequence[float]) -> float:
    """Largest over smallest value; 0 if a value is not positive, because it has no logarithm."""
    known = [value for value in values if math.isfinite(value)]
    return max(known) / min(known) if known and min(known) > 0 else 0.0


def _points(line: Line, axis: Axis) -> Points:
    curve = line.curve
    each = -(-len(curve.steps) // MOST_POINTS)
    return _thinned(curve.steps, curve.values, [line.log.x(axis, *at) for at in _places(curve)], each)


def _places(curve: Curve) -> Iterable[tuple[int, int]]:
    return zip(curve.steps, curve.attempts, strict=True)


def _thinned(steps: Sequence[int], values: Sequence[float], xs: Sequence[float], each: int) -> Points:
    """For every ``each`` points: their middle step, and their mean, lowest and highest value."""
    parts = [slice(start, start + each) for start in range(0, len(steps), each)]
    mean, low, high = ([_of(pick, values[part]) for part in parts] for pick in (fmean, min, max))
    middles = [part.start + len(steps[part]) // 2 for part in parts]
    return Points(
        steps=[steps[at] for at in middles],
        x=[xs[at] for at in middles],
        mean=mean,
        low=low,
        high=high,
        each=each,
    )


def _of(pick: Callable[[list[float]], float], values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return pick(known) if known else math.nan


def _all_values(drawn: Sequence[tuple[Line, Points]], *, bars: bool = False) -> list[float]:
    """What the vertical axis must reach: values and baselines, and with ``bars`` their error bars."""
    found: list[float] = []
    for line, points in drawn:
        found += [*points.low, *points.high, *([line.baseline] if line.baseline is not None else [])]
        for _, values in line.curve.replaced.values():
            found += values
        for step, value in zip(points.steps, points.mean, strict=True):
            error = line.errors.get(step, 0.0) if bars else 0.0
            found += [value - error, value + error]
    return [value for value in found if math.isfinite(value)]


def _grid(across: Scale, up: Scale, axis: Axis) -> str:
    """Lines and numbers of both axes, and the name of the horizontal one."""
    parts = [f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>']
    for value in up.ticks:
        y = up(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(f'<text class="up" x="{LEFT - 6}" y="{y + 3.5:.1f}">{short(value)}</text>')
    for value in across.ticks:
        x = across(value)
        parts.append(f'<path class="axis" d="M{x:.1f} {BOTTOM}v4"/>')
        parts.append(f'<text x="{min(x, RIGHT - 6):.1f}" y="{BOTTOM + 15}">{short(value)}</text>')
    parts.append(f'<text class="name" x="{(LEFT + RIGHT) / 2:.0f}" y="{BOTTOM + 31}">{axis}</text>')
    return "".join(parts)


def _draw_line(line: Line, points: Points, across: Scale, up: Scale, axis: Axis, *, smooth: bool) -> str:
    """One run's part: restarts, replaced values, band, curve, smoothed curve, markers and error bars."""
    parts = []
    for step, attempt in line.restarts:
        at = line.log.began.get(attempt, math.nan) if axis == "hours" else line.log.x(axis, step, attempt)
        if math.isfinite(at):
            parts.append(f'<path class="restart" d="M{across(at):.1f} {TOP}V{BOTTOM}"/>')
    for attempt, (steps, values) in line.curve.replaced.items():
        old = _thinned(steps, values, [line.log.x(axis, step, attempt) for step in steps], points.each)
        parts.append(f'<path class="replaced" d="{_path(old.x, old.mean, across, up)}"/>')
    if points.each > 1:
        parts.append(f'<path class="band" d="{_band(points, across, up)}"/>')
    smoothed = _is_smoothed(line, smooth)
    kind = "line raw" if smoothed else "line"
    parts.append(f'<path class="{kind}" d="{_path(points.x, points.mean, across, up)}"{_told(points)}/>')
    if smoothed:
        parts.append(f'<path class="line" d="{_path(points.x, _smoothed(points.mean), across, up)}"/>')
    if len(points.x) <= FEW_POINTS and line.index != REFERENCE:
        parts += [f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in _pixels(points.x, points.mean, across, up)]
    for step, x, value in zip(points.steps, points.x, points.mean, strict=True):
        if (error := line.errors.get(step)) and math.isfinite(x) and math.isfinite(value):
            ends = f"{across(x):.1f} {up(value - error):.1f}V{up(value + error):.1f}"
            parts.append(f'<path class="error" d="M{ends}"/>')
    return f'<g class="{class_of(line.index)}">{"".join(parts)}</g>'


def _told(points: Points) -> str:
    """Places and values of the points, for the page's script: in the order of the path's points."""
    known = [(x, y) for x, y in zip(points.x, points.mean, strict=True) if math.isfinite(x) and math.isfinite(y)]
    places, values = (" ".join(number(pair[part], digits) for pair in known) for part, digits in ((0, 7), (1, 4)))
    return f' data-x="{places}" data-y="{values}"'


def _pixels(xs: Sequence[float], ys: Sequence[float], across: Scale, up: Scale) -> list[tuple[str, str]]:
    known = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return [(f"{across(x):.1f}", f"{up(y):.1f}") for x, y in known]


def _path(xs: Sequence[float], ys: Sequence[float], across: Scale, up: Scale) -> str:
    """A line through the points, interrupted where a value is not finite."""
    text, pen = "", "M"
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            text += f"{pen}{across(x):.1f} {up(y):.1f}"
            pen = "L"
        else:
            pen = "M"
    return text


def _band(points: Points, across: Scale, up: Scale) -> str:
    """The area between the lowest and highest values."""
    there = _pixels(points.x, points.high, across, up)
    back = _pixels(points.x, points.low, across, up)[::-1]
    return "M" + "L".join(f"{x} {y}" for x, y in [*there, *back]) + "Z"


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean over as many neighbours to the left as to the right, fewer near the ends, so that no line lags."""
    reach = max(2, round(len(values) * SMOOTHED_SHARE / 2))
    found = []
    for at, value in enumerate(values):
        side = min(reach, at, len(values) - 1 - at)
        near = _of(fmean, values[at - side : at + side + 1])
        found.append(near if math.isfinite(value) else math.nan)
    return found
