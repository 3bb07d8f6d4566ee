"""What was measured of the checkpoint that a page shows."""

from pathlib import Path
from typing import Any

from callbacks.measures.records import read_results
from modules.files import step_name
from modules.run_files import RECORDS

NONE = "–"


def scores_of(run: Path, step: int) -> list[list[str]]:
    """Rows of measure, metric, value, standard error, trivial baseline and N; no rows if nothing was measured.

    Raises:
        ValueError: the results are damaged.
    """
    results = read_results(run / RECORDS / step_name(step))
    return [_row(name, metric, result) for name, result in results.items() for metric in _whole(result["metrics"])]


def _whole(metrics: dict[str, float]) -> list[str]:
    """Metrics that cover more than a split or a type."""
    return [metric for metric in metrics if "/" not in metric]


def _row(name: str, metric: str, result: dict[str, Any]) -> list[str]:
    beside = (result[kind].get(metric) for kind in ("standard_errors", "baselines"))
    value, error, baseline = (NONE if x is None else f"{x:z.3f}" for x in (result["metrics"][metric], *beside))
    return [name, metric, value, error, baseline, str(result["protocol"]["n"])]
