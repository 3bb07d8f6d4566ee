"""A table that compares computed values with recorded ones."""

from dataclasses import dataclass

from torch import Tensor

Row = tuple[str, float, float]
"""What was compared, its relative error, and the largest error allowed."""


@dataclass(frozen=True)
class Comparison:
    """The rows, and the device they were computed on; ids that differ count as an error of 1."""

    device: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance."""
        return all(error <= tolerance for _, error, tolerance in self.rows)

    def lines(self) -> list[str]:
        """The table as text, with a verdict per row."""
        width = max(len(name) for name, _, _ in self.rows)
        lines = [f"{'on ' + self.device:<{width}}  {'error':>9}  {'allowed':>9}"]
        for name, error, tolerance in self.rows:
            lines.append(f"{name:<{width}}  {error:9.2e}  {tolerance:9.2e}  {'ok' if error <= tolerance else 'FAILED'}")
        failed = sum(not error <= tolerance for _, error, tolerance in self.rows)  # not <= instead of >: NaN fails too
        lines.append("all within tolerance" if not failed else f"{failed} of {len(self.rows)} above tolerance")
        return lines


def compare_values(name: str, value: Tensor, truth: Tensor, tolerance: float) -> Row:
    """A row with the relative error: the norm of the difference over the norm of ``truth``."""
    error = (value.detach().double() - truth.double()).norm() / truth.double().norm()
    return name, float(error), tolerance


def compare_ids(name: str, ids: Tensor, truth: Tensor) -> Row:
    """A row for ids, which must be equal."""
    return name, float(not (ids.shape == truth.shape and bool((ids == truth).all()))), 0.0
