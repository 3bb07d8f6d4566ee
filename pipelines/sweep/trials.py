"""A sweep's folder: whose it is, what was tried in it, and what came of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from callbacks.tracking import read_metrics
from modules.json_lines import append_rows, drop_torn_line, read_rows
from modules.locks import lock_of, locked
from pipelines.run.overrides import ConfigError

TRIALS, LOCK = "trials.jsonl", ".lock"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial, as far as it got. It is ``started`` until it is known what came of it."""

    number: int
    parameters: dict[str, Any]
    state: Literal["started", "finished", "failed"] = "started"
    value: float | None = None
    """Of the sweep's metric; null unless finished."""
    reason: str = ""
    """Why it failed."""

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"trial-{self.number:03d}"


@dataclass(frozen=True)
class SweepFolder:
    """``FOLDER/trials.jsonl``: first the sweep, then a line whenever a trial changes, of which the last one counts.

    Beside it ``trial-000/``, its run folder, and ``trial-000.log``, what it said.
    """

    path: Path

    def open(self, sweep: dict[str, Any]) -> None:
        """Make the folder that of ``sweep``: what its trials are determined by, as plain data.

        Raises:
            ConfigError: it is another sweep's.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(lock_of(self.path / TRIALS)):  # the tasks of an array start at once
            drop_torn_line(self.path / TRIALS)
            rows = self._rows()
            if not rows:
                append_rows(self.path / TRIALS, [sweep])
                return
        if changed := [key for key in sweep if rows[0].get(key) != sweep[key]]:
            lines = "\n".join(f"  {key}: {rows[0].get(key)!r} there, {sweep[key]!r} now" for key in changed)
            raise ConfigError(f"{self.path} holds another sweep:\n{lines}\nChoose another --folder")

    @contextmanager
    def claimed(self) -> Iterator[int]:
        """Hold the folder; yields a file descriptor that a trial inherits, so that it holds the folder too.

        Raises:
            ConfigError: another process holds it.
        """
        with ExitStack() as held:
            try:
                claim = held.enter_context(locked(self.path / LOCK, wait=False))
            except BlockingIOError as error:
                raise ConfigError(
                    f"another process runs the sweep in {self.path}, or its last trial is still training; wait for it, "
                    "or choose another --folder"
                ) from error
            yield claim

    def trials(self) -> list[Trial]:
        """All trials begun, in order."""
        found = {row["number"]: Trial(**row) for row in self._rows()[1:]}
        return [found[number] for number in sorted(found)]

    def note(self, trial: Trial) -> Trial:
        """Write down where ``trial`` stands."""
        append_rows(self.path / TRIALS, [asdict(trial)])
        return trial

    def run(self, trial: Trial) -> Path:
        """Its run folder."""
        return self.path / trial.name

    def log(self, trial: Trial) -> Path:
        """What it said, in all of its starts."""
        return self.path / f"{trial.name}.log"

    def value(self, trial: Trial, metric: str) -> float:
        """What the trial logged last as ``metric``.

        Raises:
            LookupError: nothing, or no finite number.
        """
        rows = read_metrics(self.run(trial))
        values = [row[metric] for row in rows if metric in row]
        if not values:
            known = ", ".join(sorted({key for row in rows for key in row if "/" in key}))
            raise LookupError(f"{metric} is not in its metrics.jsonl, which has {known or 'nothing'}")
        if values[-1] is None:
            raise LookupError(f"{metric} was not a finite number in the end")
        return float(values[-1])

    def _rows(self) -> list[dict[str, Any]]:
        return list(read_rows(self.path / TRIALS))


def best(trials: list[Trial], *, maximize: bool) -> Trial | None:
    """The finished trial with the best value; of equal ones the first."""
    finished = [(trial.value, trial) for trial in trials if trial.state == "finished" and trial.value is not None]
    if not finished:
        return None
    values = [value for value, _ in finished]
    return finished[values.index(max(values) if maximize else min(values))][1]
