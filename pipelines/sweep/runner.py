"""Runs a sweep in its folder, one trial after another, each in its own training process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.run_files import COMPLETE
from pipelines.run.console import say, warn
from pipelines.run.ending import INTERRUPTED, PREEMPTED
from pipelines.run.output import show_table
from pipelines.run.overrides import ConfigError, refuse_secret_words
from pipelines.run.texts import override
from pipelines.sweep.file import Sweep
from pipelines.sweep.trials import SweepFolder, Trial, best

STOPPED = {PREEMPTED, INTERRUPTED}
"""Exit codes of a training that was stopped (by a signal or Ctrl-C) and can resume."""
NO_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


@dataclass(frozen=True)
class Runner:
    """One sweep in its folder."""

    sweep: Sweep
    folder: SweepFolder
    overrides: tuple[str, ...]
    seed: int

    def propose(self, number: int) -> list[str]:
        """The arguments of a trial that is started elsewhere.

        Raises:
            ConfigError: the sweep has no such trial, or a word holds a secret.
        """
        if self.sweep.method == "bayes":
            raise ConfigError(
                f"{self.sweep.path}: method=bayes learns from earlier trials, so none can be proposed on its own; use "
                "grid or random, or run the sweep without --propose"
            )
        self._open()
        parameters = self.sweep.suggest(number, [], self.seed)
        if parameters is None:
            raise ConfigError(f"{self.sweep.path}: the grid has no trial {number}; trials count from 0")
        return self._words(Trial(number=number, parameters=parameters))

    def run(self, limit: int, max_failures: int, *, retry: bool) -> None:
        """Run trials until there are ``limit``, and report their results."""
        if "early_terminate" in self.sweep.content:
            warn(f"{self.sweep.path}: early_terminate is for W&B's server; here every trial runs to its end")
        self._open()
        with self.folder.claimed() as claim:
            failures = self._run(limit, max_failures, retry, claim)
        self._report(limit)
        if failures >= max_failures:
            say(f"stopped after {failures} failed trials (--max-failures); --retry starts them again")
            sys.exit(1)

    def _open(self) -> None:
        self._words(Trial(number=0, parameters={}))  # what it refuses is refused before anything is written
        self.folder.open({"sweep": self.sweep.content, "overrides": list(self.overrides), "seed": self.seed})

    def _run(self, limit: int, max_failures: int, retry: bool, claim: int) -> int:
        known, failures = {trial.number: trial for trial in self.folder.trials()}, 0
        for number in range(limit):
            trial = known.get(number)
            if trial is not None and (trial.state == "finished" or (trial.state == "failed" and not retry)):
                continue
            if trial is None:
                parameters = self.sweep.suggest(number, [_told(each) for each in known.values()], self.seed)
                if parameters is None:
                    break
                trial = Trial(number=number, parameters=parameters)
            trial = replace(trial, state="started", reason="")
            known[number] = self.folder.note(self._attempt(self.folder.note(trial), claim))
            failures += known[number].state == "failed"
            if failures >= max_failures:
                break
        return failures

    def _attempt(self, trial: Trial, claim: int) -> Trial:
        """Train ``trial`` from its start, or from where it stopped, to its end."""
        run, log = self.folder.run(trial), self.folder.log(trial)
        begun, said, code = time.monotonic(), log.stat().st_size if log.is_file() else 0, 0
        if not (run / COMPLETE).is_file():
            say(f"{trial.name}: {_shown(trial)} (log: {log})")
            code = train(self._words(trial), log, claim)
        if code in STOPPED:
            warn(f"{trial.name} was stopped; start the same command again to go on from there")
            sys.exit(code)
        try:
            if not (run / COMPLETE).is_file():
                raise LookupError(last_words(log.read_bytes()[said:].decode(errors="replace"), code))
            value = self.folder.value(trial, self.sweep.metric)
        except LookupError as error:
            reason = str(error)
            warn(f"{trial.name} failed: {reason}")
            return replace(trial, state="failed", reason=reason)
        say(f"{trial.name}: {self.sweep.metric} {value:.5g}, in {time.monotonic() - begun:.0f} s")
        return replace(trial, state="finished", value=value)

    def _words(self, trial: Trial) -> list[str]:
        """The arguments of ``pipelines.train``, which are run as they are: a secret is refused and not hidden.

        Raises:
            ConfigError: one of them holds a secret.
        """
        name = self.folder.path.name
        ours = [override("name", f"{name}-{trial.name}"), override("tracking.group", name)]  # so W&B groups the trials
        run = override("run.dir", self.folder.run(trial))
        words = [*self.sweep.words(trial.parameters), *ours, *self.overrides, run]
        refuse_secret_words(words, f"{self.sweep.path}, {trial.name}")
        return words

    def _report(self, limit: int) -> None:
        trials = [trial for trial in self.folder.trials() if trial.number < limit]
        _print_table(trials, self.sweep.metric)
        winner = best(trials, maximize=self.sweep.maximize)
        if winner is None:
            say("no trial has finished")
            sys.exit(1)
        say(f"best: {winner.name}, {self.sweep.metric} {winner.value:.5g}: {_shown(winner)}")
        say(f"its run folder is {self.folder.run(winner)}")


def train(words: Sequence[str], log: Path, claim: int) -> int:
    """Train in a separate process, which receives the signals of this one; return its exit code."""
    environment = {key: value for key, value in os.environ.items() if key not in NO_AGENT}
    early: list[int] = []
    pass_on: Callable[[int], None] = early.append  # until there is a process
    signs = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(sign, lambda number, _frame: pass_on(number)) for sign in signs]
    try:
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "pipelines.train", *words],
                stdout=output, stderr=output, env=environment, pass_fds=[claim],
            )  # fmt: skip
        pass_on = process.send_signal
        for number in early:
            process.send_signal(number)
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal sends Ctrl-C to the trial, too
            process.wait()
            raise
    finally:
        for sign, handler in zip(signs, before, strict=True):
            signal.signal(sign, handler)


def last_words(said: str, code: int) -> str:
    """Why a trial ended: its error message, or else the last line of its output."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    _, error, message = said.rpartition("\nerror: ")
    if not error:
        message = (said.strip() or "ended without output").splitlines()[-1]
    return f"{' '.join(message.split())[:400]} (exit code {code})"


def _told(trial: Trial) -> dict[str, Any]:
    return {"parameters": trial.parameters, "state": trial.state, "value": trial.value}


def _shown(trial: Trial) -> str:
    return " ".join(f"{key}={value}" for key, value in trial.parameters.items())


def _print_table(trials: Sequence[Trial], metric: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("trial", title="What was tried")
    keys = list(dict.fromkeys(key for trial in trials for key in trial.parameters))
    for column in (*keys, metric):
        table.add_column(column, justify="right")
    table.add_column("state")
    for trial in trials:
        value = "-" if trial.value is None else f"{trial.value:.5g}"
        state = trial.state + (f": {trial.reason}" if trial.reason else "")
        cells = [str(trial.parameters.get(key, "-")) for key in keys]
        table.add_row(trial.name, *map(escape, cells), value, escape(state))
    show_table(table)
