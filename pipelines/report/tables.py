"""The tables of the report: what was run, how it was configured, and what was measured."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from callbacks.bad_samples_file import read_bad_samples
from modules.metrics.paper import TABLES, PaperTable, paper_value
from modules.omnimamba.config import TASKS
from modules.run_files import BAD_SAMPLES, PREEMPTED
from pipelines.report.read import Run
from pipelines.run.config import RunConfig

PER_RUN = ("name", "run.dir")
"""Keys that identify a run, not its settings."""
NONE = "–"
_LONG = 1e15
"""From here on, numbers have an exponent."""
ROUNDING = 1e-12
"""Smaller values are rounding errors, shown as zero."""


@dataclass(frozen=True, kw_only=True)
class ConfigRow:
    """A key that is not at its default in some run."""

    key: str
    default: str
    values: list[str]
    """One per run."""

    @property
    def differs(self) -> bool:
        """Whether the runs have different values."""
        return len(set(self.values)) > 1


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """A metric of a run, at the first and last step at which it was measured."""

    measure: str
    metric: str
    run: int
    first: str
    last: str
    error: str
    baseline: str
    baseline_name: str
    n: str
    paper: str

    @property
    def is_detail(self) -> bool:
        """Whether it covers only a split or type."""
        return "/" in self.metric


@dataclass(frozen=True, kw_only=True)
class PaperPart:
    """A table of the paper with our rows below it."""

    table: PaperTable
    ours: list[tuple[int, list[str]]]
    """Index of the run, and its cells."""


def number(value: float | None, digits: int = 4) -> str:
    """A number in short form."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if 10**digits <= abs(value) < _LONG:
        return f"{value:.0f}"
    return f"{value if abs(value) > ROUNDING else 0:.{digits}g}"


def moment(seconds: float | None) -> str:
    """A point in time, UTC."""
    if seconds is None:
        return NONE
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"no time: {number(seconds)}"


def summary(run: Run) -> dict[str, str]:
    """What was run, in a few words each."""
    attempts, last = run.attempts, run.attempts[-1] if run.attempts else {}
    wanted = run.get("trainer.max_steps")
    step = "no step" if run.log.last_step is None else f"step {run.log.last_step}"
    state = f"complete at {step}" if run.complete else f"not complete: {step} of {wanted or '?'} logged"
    if (run.path / PREEMPTED).is_file():
        state += ", stopped on request"
    began = attempts[0].get("time") if attempts else None
    cells = {
        "folder": str(run.path),
        "stage": str(run.get("stage.name", NONE)),
        "state": state,
        "first started": moment(began),
        "last log": moment(run.log.last_time),
        "attempts": str(len(attempts) or NONE),
        "hardware": _hardware(run, last),
        "code": str(last.get("code", NONE)),
        "starts from": _origins(run) or "nothing: own initial weights",
    }
    return cells | _data(run, last) | {"bad samples": _bad_samples(run)}


def _origins(run: Run) -> str:
    earlier = run.get("init_from", [])
    named = [*(earlier if isinstance(earlier, list) else [earlier]), run.get("pretrained")]
    return ", ".join(str(each) for each in named if each)


def _hardware(run: Run, attempt: dict[str, Any]) -> str:
    nodes, devices = run.get("hardware.nodes", 1), run.get("hardware.devices", 1)
    parts = [f"{nodes} × {devices} {run.get('hardware.accelerator', 'device')}"]
    parts += [f"{attempt['cpu_cores']} CPU cores"] if "cpu_cores" in attempt else []
    parts += [str(attempt[key]) for key in sorted(attempt) if key.startswith(("gpu", "machine", "device"))]
    return ", ".join(parts)


def _data(run: Run, attempt: dict[str, Any]) -> dict[str, str]:
    prints = attempt.get("data") if isinstance(attempt.get("data"), dict) else None
    cells = {}
    for task in TASKS:
        if (fingerprint := (prints or {}).get(task)) is None:
            cells[f"data: {task}"] = NONE
            continue
        parts = [f"{run.get(f'data.{task}', NONE)} ({str(fingerprint)[:12]})"]
        if batch := run.get(f"data.global_batch.{task}"):
            parts.append(f"{batch} per step")
        if epochs := run.log.curves.get(f"data/epoch_{task}"):
            parts.append(f"{number(epochs.values[-1], 3)} epochs seen")
        cells[f"data: {task}"] = ", ".join(parts)
    return cells


def _bad_samples(run: Run) -> str:
    bad = run.noted(read_bad_samples, run.path / BAD_SAMPLES, run.log.last_step or 0)
    if bad is None:
        return f"{BAD_SAMPLES} is damaged"
    reasons = Counter(str(row.get("reason")) for row in bad).most_common(5)
    return "; ".join([f"{len(bad)}", *(f"{reason} ({count})" for reason, count in reasons)]) if bad else "none"


def attempt_facts(attempt: dict[str, Any]) -> dict[str, str]:
    """Code, packages, machine and data of an attempt, by dotted key."""
    return flatten({key: value for key, value in attempt.items() if key not in ("time", "resumed")})


def attempt_rows(run: Run) -> list[dict[str, str]]:
    """One row per attempt: when, from where, and what changed since the last one."""
    rows = []
    before: dict[str, str] = {}
    for number_, attempt in enumerate(run.attempts, start=1):
        facts = attempt_facts(attempt)
        keys = [key for key in sorted(facts.keys() | before.keys()) if facts.get(key) != before.get(key)]
        changed = [f"{key}: {facts.get(key, NONE)}" for key in keys]
        rows.append(
            {
                "attempt": str(number_),
                "started": moment(attempt.get("time")),
                "from": str(attempt.get("resumed") or "its beginning"),
                "first logged step": str(run.log.first_steps.get(number_, NONE)),
                "changed": NONE if not before else "; ".join(changed) or "nothing",
            }
        )
        before = facts
    return rows


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Leaves by dotted key, as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _text(value)
    return found


def config_rows(runs: Sequence[Run]) -> list[ConfigRow]:
    """What differs from the defaults in any of ``runs``."""
    defaults = _defaults(RunConfig)
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    rows = []
    for key in keys:
        default = defaults.get(key, NONE)
        # a run without a section leaves its keys at their defaults
        if key not in PER_RUN and any(leaves.get(key, default) != default for leaves in flat):
            rows.append(ConfigRow(key=key, default=default, values=[leaves.get(key, NONE) for leaves in flat]))
    return rows


def _defaults(cls: type, instance: Any = None, prefix: str = "") -> dict[str, str]:
    """Leaves of a configuration class, or of ``instance``; an optional section counts with its own defaults."""
    found: dict[str, str] = {}
    hints = get_type_hints(cls)
    for part in fields(cls):
        hint, key, value = hints[part.name], prefix + part.name, _default(part)
        if instance is not None:
            value = getattr(instance, part.name)
        sections = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)]
        if sections:
            found |= _defaults(sections[0], value if is_dataclass(value) else None, f"{key}.")
        elif value is not MISSING:
            found[key] = _text(value)
    return found


def _default(part: "Field[Any]") -> Any:
    return part.default_factory() if part.default_factory is not MISSING else part.default


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return NONE if value is None else str(value)


def result_rows(runs: Sequence[Run]) -> list[ResultRow]:
    """All metrics; the rows of all runs for one metric are adjacent."""
    rows = []
    for index, run in enumerate(runs):
        for measure, last in run.last_results().items():
            first = min(step for step in run.results if measure in run.results[step])
            metrics = run.results[last][measure]["metrics"]
            rows += [_result_row(run, index, measure, metric, first, last) for metric in metrics]
    order = {key: place for place, key in enumerate(dict.fromkeys((row.measure, row.metric) for row in rows))}
    measures = {name: place for place, name in enumerate(dict.fromkeys(row.measure for row in rows))}
    return sorted(rows, key=lambda row: (measures[row.measure], order[row.measure, row.metric], row.run))


def _result_row(run: Run, index: int, measure: str, metric: str, first: int, last: int) -> ResultRow:
    result, earlier = run.results[last][measure], run.results[first][measure]["metrics"].get(metric)
    protocol, errors, baselines = result["protocol"], result["standard_errors"], result["baselines"]
    known = metric in baselines
    return ResultRow(
        measure=measure,
        metric=metric,
        run=index,
        first=NONE if first == last else f"{number(earlier)} (step {first})",
        last=f"{number(result['metrics'][metric])} (step {last})",
        error=number(errors.get(metric), 2),
        baseline=number(baselines.get(metric)),
        baseline_name=str(protocol.get("baseline", "")) if known else "",
        n=str(result.get("counts", {}).get(metric, protocol.get("n", NONE))),
        paper=number(paper_value((measure, metric))),
    )


def paper_parts(runs: Sequence[Run]) -> list[PaperPart]:
    """The tables of the paper for which some run has an official measure."""
    parts = []
    for table in TABLES:
        ours = [(index, cells) for index, run in enumerate(runs) if any(cells := _paper_cells(run, table))]
        if ours:
            parts.append(PaperPart(table=table, ours=[(i, [cell or NONE for cell in cells]) for i, cells in ours]))
    return parts


def _paper_cells(run: Run, table: PaperTable) -> list[str]:
    """The run's values in the paper's unit; empty if it has none."""
    cells, last = [], run.last_results()
    for column in table.columns:
        measure, metric = column.key or ("", "")
        result = run.results[last[measure]][measure] if measure in last else {"metrics": {}}
        if metric not in result["metrics"]:
            cells.append("")
            continue
        errors = result["standard_errors"]
        known = [result["metrics"][metric], *([errors[metric]] if metric in errors else [])]
        cells.append(" ± ".join(f"{value * column.scale:.{column.decimals}f}" for value in known))
    return cells
