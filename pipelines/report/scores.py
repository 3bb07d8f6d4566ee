"""The scoreboard: of each measure its main number, and of each loss its last value."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modules.metrics.paper import paper_value
from pipelines.report.read import Run
from pipelines.report.tables import NONE, number

LOSSES = r"train/loss_"
_LOWER_IS_BETTER = re.compile(r"loss|^r?fid|^r?fd_|^kd_|^kid|_s$")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number of a run, and what it can be held against."""

    measure: str
    metric: str
    run: int
    """Index of the run."""
    value: str
    step: int
    error: str
    change: str
    """Since the run's first value, or `NONE`."""
    since: int
    """Step of the first value."""
    improved: bool | None
    """None if it did not change."""
    baseline: str
    baseline_name: str
    paper: str
    n: str
    """Number of samples behind it; empty for a loss in training."""

    @property
    def lower_is_better(self) -> bool:
        """Whether the best number is the lowest."""
        return bool(_LOWER_IS_BETTER.search(self.metric))


def scoreboard(runs: Sequence[Run]) -> list[Score]:
    """The main number of each measure, then the losses; those of all runs for one number are adjacent."""
    scores = [score for index, run in enumerate(runs) for score in [*_measured(index, run), *_losses(index, run)]]
    measured = [(score.measure, score.metric) for score in scores if score.n]
    places = dict.fromkeys([*measured, *((score.measure, score.metric) for score in scores)])
    order = {key: place for place, key in enumerate(places)}
    return sorted(scores, key=lambda score: (order[score.measure, score.metric], score.run))


def _measured(index: int, run: Run) -> list[Score]:
    return [
        _result(index, run, measure, metric, last)
        for measure, last in run.last_results().items()
        for metric in main_metrics(run.results[last][measure]["metrics"])
    ]


def main_metrics(metrics: Mapping[str, float]) -> list[str]:
    """The losses of a validation; else the first metric that is not of a split or type, as measures list them."""
    whole = [metric for metric in metrics if "/" not in metric]
    return [metric for metric in whole if metric.startswith("loss_")] or whole[:1]


def _result(index: int, run: Run, measure: str, metric: str, last: int) -> Score:
    result = run.results[last][measure]
    known = [step for step, found in run.results.items() if metric in found.get(measure, {"metrics": {}})["metrics"]]
    before = run.results[min(known)][measure]["metrics"][metric]
    beside = {
        "error": number(result["standard_errors"].get(metric), 2),
        "baseline": number(result["baselines"].get(metric)),
        "baseline_name": str(result["protocol"].get("baseline", "")) if metric in result["baselines"] else "",
        "paper": number(paper_value((measure, metric))),
        "n": str(result.get("counts", {}).get(metric, result["protocol"].get("n", NONE))),
    }
    return _score(index, measure, metric, (min(known), before), (last, result["metrics"][metric]), **beside)


def _losses(index: int, run: Run) -> list[Score]:
    names = [name for name in sorted(run.log.curves) if re.match(LOSSES, name)]
    found = []
    for name in names or [name for name in ("train/loss",) if name in run.log.curves]:
        curve = run.log.curves[name]
        measure, metric = name.rsplit("/", 1)
        first, last = (curve.steps[0], curve.values[0]), (curve.steps[-1], curve.values[-1])
        none = dict.fromkeys(("error", "baseline", "paper"), NONE)
        found.append(_score(index, measure, metric, first, last, **none, baseline_name="", n=""))
    return found


def _score(
    index: int, measure: str, metric: str, first: tuple[int, float], last: tuple[int, float], **beside: str
) -> Score:
    change = last[1] - first[1]
    changed = first[0] != last[0]
    lower = bool(_LOWER_IS_BETTER.search(metric))
    return Score(
        measure=measure,
        metric=metric,
        run=index,
        value=number(last[1]),
        step=last[0],
        change=f"{'+' if change > 0 else ''}{number(change, 3)}".replace("-", "−") if changed else NONE,
        since=first[0],
        improved=(change < 0) == lower if changed and change else None,
        **beside,
    )
