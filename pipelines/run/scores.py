"""What was measured of a checkpoint, in rows for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from callbacks.measures.records import read_results
from modules.files import step_name
from modules.run_files import RECORDS

NONE = "–"
COLUMNS = ("measure", "metric", "value", "± std err", "trivial", "N")


def scores_of(run: Path, step: int) -> list[list[str]]:
    """Rows of `COLUMNS`; no rows if nothing was measured.

    Raises:
        ValueError: the results are damaged.
    """
    results = read_results(run / RECORDS / step_name(step))
    return [_row(name, metric, result) for name, result in results.items() for metric in _whole(result["metrics"])]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """`scores_of` as a table in Markdown."""
    rule = [*["---"] * 2, *["---:"] * 4]
    return "\n".join(f"| {' | '.join(row)} |" for row in (COLUMNS, rule, *rows))


def _whole(metrics: dict[str, float]) -> list[str]:
    """Metrics that cover more than a split or a type."""
    return [metric for metric in metrics if "/" not in metric]


def _row(name: str, metric: str, result: dict[str, Any]) -> list[str]:
    beside = (result[kind].get(metric) for kind in ("standard_errors", "baselines"))
    value, error, baseline = (NONE if x is None else f"{x:z.3f}" for x in (result["metrics"][metric], *beside))
    return [name, metric, value, error, baseline, str(result.get("counts", {}).get(metric, result["protocol"]["n"]))]
