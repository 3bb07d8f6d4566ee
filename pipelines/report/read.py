"""Reads a run folder for the report. Damaged or missing parts become notes; the rest is shown."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from omegaconf import OmegaConf

from callbacks.measures.records import read_results
from modules.files import step_folders, step_name, step_of
from modules.json_lines import read_rows
from modules.run_files import COMPLETE, CONFIG, METRICS, PROVENANCE, RECORDS
from modules.unheard import unheard
from pipelines.report.curves import METRIC_KEYS, Log, collect, finite
from pipelines.run.overrides import read_yaml
from pipelines.run.provenance import read_provenance

P = ParamSpec("P")
T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(kw_only=True)
class Run:
    """The readable parts of a run folder."""

    path: Path
    label: str
    """Its name on the page: the name of the folder, or its path if two have the same name."""
    config: dict[str, Any] = field(default_factory=dict)
    wandb_run_id: str = ""
    """Empty if unknown."""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    complete: bool = False
    results: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Results as in results.json, by evaluated step and measure."""
    notes: list[str] = field(default_factory=list)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a dotted configuration key."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def last_results(self) -> dict[str, int]:
        """The last step at which each measure was evaluated."""
        return {name: step for step in sorted(self.results) for name in self.results[step]}

    def restarts(self) -> list[tuple[int, int]]:
        """(step, attempt) of each resume after an interruption: the checkpoint's step, or 0 if it started over."""
        steps = [step_of(str(attempt.get("resumed") or step_name(0))) for attempt in self.attempts[1:]]
        return [(step, number) for number, step in enumerate(steps, start=2) if step is not None]

    def noted(self, read: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
        """The result of ``read``; if a file is damaged or missing, add a note and return None."""
        try:
            return read(*arguments, **options)
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            self.notes.append(f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error))
            return None


def read_runs(paths: list[Path], progress: Progress = unheard) -> list[Run]:
    """The runs of these folders; ``progress`` is called with each that is read.

    Raises:
        ValueError: one is not a run folder, or is named twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a run is named twice: {' '.join(map(str, paths))}; name each once")
    names = [path.resolve().name for path in paths]
    runs = []
    for done, (path, name) in enumerate(zip(paths, names, strict=True)):
        progress("read runs", done, len(paths))
        runs.append(_read(path, name if names.count(name) == 1 else str(path)))
    return runs


def only_runs(paths: Sequence[Path], warn: Callable[[str], None]) -> list[Path]:
    """Those of several ``paths`` that are run folders, as ``runs/*`` names other things too; the rest is told.

    One path alone, or paths of which none is a run, are returned as they are: `read_runs` says what is wrong. So are
    those that are not there, because no shell's pattern yields them.
    """
    others = [path for path in paths if path.exists() and not _is_run(path)]
    if not others or len(others) == len(paths):
        return list(paths)
    warn(f"left out, because {'it is' if len(others) == 1 else 'they are'} no run: {', '.join(map(str, others))}")
    return [path for path in paths if path not in others]


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() or (path / METRICS).is_file()


def _read(path: Path, label: str) -> Run:
    if not _is_run(path):
        raise ValueError(
            f"{path} is not a run folder: it has neither {CONFIG} nor {METRICS}. Name one that pipelines.train made"
        )
    run = Run(path=path, label=label, complete=(path / COMPLETE).is_file())
    run.config = run.noted(_config, path / CONFIG) or {}
    run.wandb_run_id, run.attempts = run.noted(_provenance, path) or ("", [])
    _read_log(run)
    for folder in step_folders(path / RECORDS):
        results = run.noted(read_results, folder) or {}
        broken = [name for name, result in results.items() if not _is_result(result)]
        if broken:
            run.notes.append(f"{folder / 'results.json'} holds no result under {', '.join(broken)}")
        results = {name: result for name, result in results.items() if name not in broken}
        step = step_of(folder.name)
        if results and step is not None:
            run.results[step] = results
    odd = [folder for folder in (path / RECORDS).glob("step-*") if step_of(folder.name) is None]
    run.notes += [f"{folder} is left out: its name is not that of a step" for folder in odd]
    if not run.results:
        run.notes.append("no evaluation yet: there is no results.json under records/")
    return run


def _config(path: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(read_yaml(path))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _provenance(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    known = read_provenance(folder)
    if known is None:
        raise ValueError(f"{folder / PROVENANCE} is missing: code, machine and attempts are unknown")
    return known.get("wandb_run_id", ""), [{**attempt} for attempt in known["attempts"]]


def _read_log(run: Run) -> None:
    path = run.path / METRICS
    damage: list[int] = []
    began = {number: finite(attempt.get("time")) for number, attempt in enumerate(run.attempts, start=1)}
    rows = read_rows(path, METRIC_KEYS, damaged=lambda number, _: damage.append(number))
    run.log = collect(rows, {number: time for number, time in began.items() if math.isfinite(time)})
    _note_metrics(run, damage)


def _note_metrics(run: Run, damage: list[int]) -> None:
    if run.log.last_step is None:
        run.notes.append(f"nothing is logged yet: {run.path / METRICS} holds no row")
    if damage:
        shown = ", ".join(map(str, damage[:5])) + (" and more" if len(damage) > 5 else "")
        run.notes.append(f"{run.path / METRICS}: {len(damage)} damaged lines are left out (line {shown})")
    if run.log.odd:
        run.notes.append(f"{run.path / METRICS}: not numbers, so not drawn: {', '.join(sorted(run.log.odd))}")
    for name, curve in run.log.curves.items():
        if lost := sum(map(math.isnan, curve.values)):
            run.notes.append(f"{name} was not a finite number at {lost} of {len(curve.steps)} logged steps")


def _is_result(result: Any) -> bool:
    """Whether it has the form of a `Result`."""
    if not isinstance(result, dict) or not isinstance(result.get("protocol"), dict):
        return False
    parts = [result.get(part) for part in ("metrics", "standard_errors", "baselines")] + [result.get("counts", {})]
    return all(
        isinstance(part, dict) and all(isinstance(value, int | float) for value in part.values()) for part in parts
    )
