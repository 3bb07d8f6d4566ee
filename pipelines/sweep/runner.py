"""Run a sweep without a server, one trial after another.

    python -m pipelines.sweep SWEEP.yaml [--trials N] [--folder FOLDER] [key=value ...]

Examples:
    python -m pipelines.sweep configs/sweeps/smoke.yaml                        # a grid: all of its points
    python -m pipelines.sweep configs/sweeps/lr_rank.yaml --trials 12 hardware.devices=8
    sbatch --array=0-5%2 slurm/sweep.sh configs/sweeps/smoke.yaml              # side by side, on SLURM
    wandb sweep configs/sweeps/lr_rank.yaml                                    # the same file, by W&B's server

The overrides are for every trial. Start the same command again after a kill: what is finished is not repeated, and the
unfinished trial goes on from its checkpoint. Needs W&B's engine, once: make sweeps
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.run.console import INTERRUPTED, PREEMPTED, run_verb, say, warn

if TYPE_CHECKING:
    from pipelines.sweep.file import Sweep
    from pipelines.sweep.trials import SweepFolder, Trial

STOPPED = {PREEMPTED, INTERRUPTED}
"""Exit codes of a training that was told to stop and will go on: by a signal, by Ctrl-C, by SIGTERM."""
NO_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


def main() -> None:
    """Parse the command line and run the sweep."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="a sweep in W&B's format, for example one of configs/sweeps/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides for all trials")
    parser.add_argument("--trials", type=int, help="how many in all (default: run_cap of the file, or all of a grid)")
    parser.add_argument("--folder", type=Path, help="where the trials go (default: runs/sweeps/<name of the file>)")
    parser.add_argument("--seed", type=int, default=0, help="of the suggestions (default: 0)")
    parser.add_argument("--max-failures", type=int, default=3, help="stop after so many failed trials (default: 3)")
    parser.add_argument("--retry", action="store_true", help="start trials again that failed before")
    parser.add_argument(
        "--propose", type=int, metavar="K", help="train nothing: print trial K's words for pipelines.train, one a line"
    )
    arguments = parser.parse_intermixed_args()

    # Late: --help answers at once
    from pipelines.run.overrides import ConfigError, dotlist
    from pipelines.sweep.file import read_sweep
    from pipelines.sweep.trials import SweepFolder

    sweep = read_sweep(arguments.sweep)
    dotlist(arguments.overrides)
    if taken := [word for word in arguments.overrides if word.startswith("run.dir=")]:
        raise ConfigError(f"{taken[0]}: every trial has a run folder of its own; --folder says where they are")
    folder = SweepFolder(arguments.folder or Path("runs/sweeps") / arguments.sweep.stem)
    runner = _Runner(sweep, folder, tuple(arguments.overrides), arguments.seed)
    if arguments.propose is not None:
        say("\n".join(runner.propose(arguments.propose)))
        return
    runner.run(_limit(sweep, arguments.trials), arguments.max_failures, retry=arguments.retry)


def _limit(sweep: "Sweep", trials: int | None) -> int:
    from pipelines.run.overrides import ConfigError

    limit = trials if trials is not None else sweep.content.get("run_cap")
    if limit is None and sweep.method != "grid":
        raise ConfigError(f"{sweep.path}: method={sweep.method} has no end; say how many by --trials N")
    if limit is not None and limit < 1:
        raise ConfigError(f"--trials {limit} must be at least 1")
    return sys.maxsize if limit is None else limit


@dataclass(frozen=True)
class _Runner:
    """One sweep in its folder."""

    sweep: "Sweep"
    folder: "SweepFolder"
    overrides: tuple[str, ...]
    seed: int

    def propose(self, number: int) -> list[str]:
        """Words of a trial that somebody else starts."""
        from pipelines.run.overrides import ConfigError
        from pipelines.sweep.trials import Trial

        if self.sweep.method == "bayes":
            raise ConfigError(
                f"{self.sweep.path}: method=bayes learns from the trials before, so none can be proposed alone; use "
                "grid or random, or run the sweep without --propose"
            )
        self._open()
        parameters = self.sweep.suggest(number, [], self.seed)
        if parameters is None:
            raise ConfigError(f"{self.sweep.path}: the grid has no trial {number}; trials count from 0")
        return self._words(Trial(number=number, parameters=parameters))

    def run(self, limit: int, max_failures: int, *, retry: bool) -> None:
        """Run trials until there are ``limit``, and say what came of them."""
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
        self.folder.open({"sweep": self.sweep.content, "overrides": list(self.overrides), "seed": self.seed})

    def _run(self, limit: int, max_failures: int, retry: bool, claim: int) -> int:
        from pipelines.sweep.trials import Trial

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
            known[number] = self.folder.record(self._attempt(self.folder.record(trial), claim))
            failures += known[number].state == "failed"
            if failures >= max_failures:
                break
        return failures

    def _attempt(self, trial: "Trial", claim: int) -> "Trial":
        """Train it to its end, or from where it was stopped."""
        from pipelines.run.runfolder import COMPLETE

        run, log = self.folder.run(trial), self.folder.log(trial)
        begun, said, code = time.monotonic(), log.stat().st_size if log.is_file() else 0, 0
        if not (run / COMPLETE).is_file():
            say(f"{trial.name}: {_shown(trial)} (what it says: {log})")
            code = _train(self._words(trial), log, claim)
        if code in STOPPED:
            warn(f"{trial.name} was stopped; start the same command again to go on from there")
            sys.exit(code)
        try:
            if not (run / COMPLETE).is_file():
                raise LookupError(_last_words(log.read_bytes()[said:].decode(errors="replace"), code))
            value = self.folder.value(trial, self.sweep.metric)
        except LookupError as error:
            reason = str(error)
            warn(f"{trial.name} failed: {reason}")
            return replace(trial, state="failed", reason=reason)
        say(f"{trial.name}: {self.sweep.metric} {value:.5g}, in {time.monotonic() - begun:.0f} s")
        return replace(trial, state="finished", value=value)

    def _words(self, trial: "Trial") -> list[str]:
        """What follows ``pipelines.train``."""
        name = self.folder.path.name
        ours = [f"name={name}-{trial.name}", f"tracking.group={name}"]  # so that W&B shows which belong together
        return [*self.sweep.words(trial.parameters), *ours, *self.overrides, f"run.dir={self.folder.run(trial)}"]

    def _report(self, limit: int) -> None:
        from pipelines.sweep.trials import best

        trials = [trial for trial in self.folder.trials() if trial.number < limit]
        _print_table(trials, self.sweep.metric)
        winner = best(trials, maximize=self.sweep.maximize)
        if winner is None:
            say("no trial has finished")
            sys.exit(1)
        say(f"best: {winner.name}, {self.sweep.metric} {winner.value:.5g}: {_shown(winner)}")
        say(f"everything about it is in {self.folder.run(winner)}")


def _train(words: Sequence[str], log: Path, claim: int) -> int:
    """Train in a process of its own, which hears what this one is told; returns its exit code."""
    environment = {key: value for key, value in os.environ.items() if key not in NO_AGENT}
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pipelines.train", *words],
            stdout=output, stderr=output, env=environment, pass_fds=[claim],
        )  # fmt: skip
        signs = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        before = [signal.signal(sign, lambda number, _frame: process.send_signal(number)) for sign in signs]
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told the trial too
            process.wait()
            raise
        finally:
            for sign, handler in zip(signs, before, strict=True):
                signal.signal(sign, handler)


def _last_words(said: str, code: int) -> str:
    """Why a trial ended: its error message, or else the last line of what it said."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    _, error, message = said.rpartition("\nerror: ")
    if not error:
        message = (said.strip() or "ended without a word").splitlines()[-1]
    return f"{' '.join(message.split())[:400]} (exit code {code})"


def _told(trial: "Trial") -> dict[str, Any]:
    return {"parameters": trial.parameters, "state": trial.state, "value": trial.value}


def _shown(trial: "Trial") -> str:
    return " ".join(f"{key}={value}" for key, value in trial.parameters.items())


def _print_table(trials: "Sequence[Trial]", metric: str) -> None:
    from rich.console import Console
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
    Console(width=120).print(table)


if __name__ == "__main__":
    run_verb(main)
