"""The folder of a sweep: which sweep it belongs to, its trials, and their results."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from callbacks.tracking import read_metrics
from modules.json_lines import append_rows, drop_torn_line, read_rows
from modules.locks import lock_of, locked
from modules.reading import checked
from pipelines.run.overrides import ConfigError

TRIALS, LOCK = "trials.jsonl", ".lock"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial and its state, which is ``started`` until the outcome is known."""

    number: int
    parameters: dict[str, Any]
    state: Literal["started", "finished", "failed"] = "started"
    value: float | None = None
    """Value of the sweep's metric; null unless finished."""
    reason: str = ""
    """Why it failed."""

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"trial-{self.number:03d}"


class _Row(TypedDict):
    """A `Trial` as stored in JSON."""

    number: Annotated[int, Ge(0), Le(10**6)]
    parameters: dict[str, Any]
    state: NotRequired[Literal["started", "finished", "failed"]]
    value: NotRequired[float | None]
    reason: NotRequired[str]


@dataclass(frozen=True)
class SweepFolder:
    """``FOLDER/trials.jsonl``: first the sweep, then a line for every change of a trial, of which the last one counts.

    Each trial also has a run folder, ``trial-000/``, and a log, ``trial-000.log``.
    """

    path: Path

    def open(self, sweep: dict[str, Any]) -> None:
        """Assign the folder to ``sweep``, which is everything that determines the trials, as plain data.

        Raises:
            ConfigError: it belongs to another sweep.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(lock_of(self.path / TRIALS)):  # the tasks of an array start at the same time
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
        """Hold the folder; yield a file descriptor for trials to inherit, so that they hold the folder, too.

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
        """All trials started so far, in order."""
        rows = self._rows()[1:]
        checked(rows, list[_Row], f"the trials in {self.path / TRIALS}")
        found = {row["number"]: Trial(**{key: row[key] for key in row if key in _Row.__annotations__}) for row in rows}
        return [found[number] for number in sorted(found)]

    def note(self, trial: Trial) -> Trial:
        """Write down the state of ``trial``."""
        append_rows(self.path / TRIALS, [asdict(trial)])
        return trial

    def run(self, trial: Trial) -> Path:
        """The run folder of ``trial``."""
        return self.path / trial.name

    def log(self, trial: Trial) -> Path:
        """The log of ``trial``, with the output of all its starts."""
        return self.path / f"{trial.name}.log"

    def value(self, trial: Trial, metric: str) -> float:
        """The last value of ``metric`` that the trial logged.

        Raises:
            LookupError: it logged none, or a non-finite number.
        """
        rows = read_metrics(self.run(trial))
        values = [row[metric] for row in rows if metric in row]
        if not values:
            known = ", ".join(sorted({key for row in rows for key in row if "/" in key}))
            raise LookupError(f"{metric} is not in its metrics.jsonl, which has {known or 'nothing'}")
        if values[-1] is None:
            raise LookupError(f"the last value of {metric} is not a finite number")
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
