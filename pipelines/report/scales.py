"""The axes of a chart: where a value lies, and which values are written beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_ROOM = 0.06
"""Share of the values' range that is kept free above and below them."""
_FEW_DECADES = 1000.0
"""Below this ratio, 2 and 5 are written beside a logarithmic axis, too."""
_SHORT = ((1e9, "G"), (1e6, "M"), (1e4, "k"))
"""From where on a number is written shorter, and its letter."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A straight or logarithmic axis from ``low`` to ``high``, which lie at the pixels ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: list[float]

    def __call__(self, value: float) -> float:
        """The pixel of ``value``, no further out than the axis."""
        value = min(max(value, self.low), self.high)
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear_scale(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    whole: bool = False,
    ticks: int = 4,
    room: float = _ROOM,
) -> Scale:
    """A straight axis that holds ``values``; with ``whole``, only whole numbers are written beside it."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - max(abs(low) / 10, 0.5), high + max(abs(high) / 10, 0.5)
    low, high = low - (high - low) * room, high + (high - low) * room
    found = MaxNLocator(ticks, integer=whole).tick_values(low, high)
    return Scale(low=low, high=high, start=start, end=end, log=False, ticks=_inside(found, low, high))


def log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic axis that holds the positive ones of ``values``."""
    from matplotlib.ticker import LogLocator

    known = [math.log(value) for value in values if value > 0]
    room = (max(known) - min(known)) * _ROOM
    # within what a float holds
    low, high = math.exp(max(min(known) - room, -700)), math.exp(min(max(known) + room, 700))
    few = high / low < _FEW_DECADES
    found = LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6).tick_values(low, high)
    return Scale(low=low, high=high, start=start, end=end, log=True, ticks=_inside(found, low, high))


def _inside(ticks: Sequence[float], low: float, high: float) -> list[float]:
    return [float(tick) for tick in ticks if low <= tick <= high]


def short(value: float) -> str:
    """A number beside an axis."""
    for size, letter in _SHORT:
        if size <= abs(value) < 1000 * size:
            return f"{value / (1000 if letter == 'k' else size):.4g}{letter}"
    return f"{value if abs(value) > 1e-12 else 0:.4g}"
