"""Sweeps through the real entry points: without a server, killed and gone on with; and trials that an agent starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from wandb.wandb_agent import Agent

from callbacks.tracking import read_metrics
from pipelines.sweep.file import read_sweep
from tests.unit.pipelines.sweep.sweeps import SWEEPS, needs_engine
from tests.wandb_files import wandb_entries

from .running import ENVIRONMENT, NO_EVALUATION, ROOT, UNIFIED, Train, command, lines

STEPS = 6
SMOKE = "configs/sweeps/smoke.yaml"


class Sweeping:
    """`pipelines.sweep` on the smoke sweep in one folder."""

    def __init__(self, folder: Path, small: list[str], trials: int) -> None:
        self.folder = folder
        own = ["--trials", str(trials), "--folder", str(folder)]
        self.words = [sys.executable, "-m", "pipelines.sweep", SMOKE, *own, *small, *NO_EVALUATION]

    def finish(self) -> str:
        done = subprocess.run(self.words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kill(self, trial: str, step: int, sign: signal.Signals = signal.SIGKILL) -> None:
        """End the sweep and what it has started once ``trial`` has logged ``step``."""
        process = subprocess.Popen(
            self.words,
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 300
            while not any(row["step"] >= step for row in read_metrics(self.folder / trial)):
                assert process.poll() is None, process.communicate()[1].decode()
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, sign)
            process.communicate(timeout=60)

    def trials(self) -> list[dict[str, Any]]:
        return lines(self.folder / "trials.jsonl")[1:]


def check(sweeping: Sweeping, said: str, trials: int, killed: int) -> None:
    """Every trial finished once, the killed one from its checkpoint, and the one with the lowest loss is named."""
    rows = sweeping.trials()
    finished = [row for row in rows if row["state"] == "finished"]
    assert [row["number"] for row in finished] == list(range(trials))
    assert [row["number"] for row in rows if row["state"] == "started"].count(killed) == 2
    losses = []
    for row in finished:
        run = sweeping.folder / f"trial-{row['number']:03d}"
        metrics = read_metrics(run)
        assert [each["step"] for each in metrics] == list(range(1, STEPS + 1))
        assert row["value"] == metrics[-1]["train/loss"]
        attempts = json.loads((run / "provenance.json").read_text())["attempts"]
        resumed = [attempt["resumed"] for attempt in attempts]
        assert resumed == ([None, "step-000000004"] if row["number"] == killed else [None])
        losses.append(row["value"])
    lowest = losses.index(min(losses))
    assert f"best: trial-{lowest:03d}, train/loss {min(losses):.5g}" in said
    assert len({tuple(row["parameters"].items()) for row in finished}) == trials


@needs_engine
def test_a_killed_sweep_goes_on_where_it_was_and_names_its_best(small: list[str], tmp_path: Path) -> None:
    sweeping = Sweeping(tmp_path / "sweep", small, trials=2)
    sweeping.kill("trial-000", step=5)
    check(sweeping, sweeping.finish(), trials=2, killed=0)
    begun = sweeping.trials()
    assert "best: trial-" in sweeping.finish()  # nothing is left to do
    assert sweeping.trials() == begun


@needs_engine
@pytest.mark.slow
def test_the_whole_smoke_sweep_through_a_kill(small: list[str], tmp_path: Path) -> None:
    sweeping = Sweeping(tmp_path / "sweep", small, trials=6)
    sweeping.kill("trial-003", step=5)
    check(sweeping, sweeping.finish(), trials=6, killed=3)


def test_a_trial_of_an_agent_is_one_run_of_the_agents_id(train: Train, small: list[str], tmp_path: Path) -> None:
    """On two ranks: what the agent says on the command line reaches both, and rank 0 alone has a W&B run."""
    agent = {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "trial1", "WANDB_PROJECT": "paper", "WANDB_MODE": "offline"}
    words = command(
        ROOT / UNIFIED, *small, *NO_EVALUATION, "tracking.wandb=auto", "trainer.max_steps=1", "hardware.devices=2",
        "data.log_samples=true", "data.micro_batch={'mmu': 1, 't2i': 2}",
    )  # fmt: skip
    for _ in range(2):  # the second time it is complete: no second run
        done = subprocess.run(
            words, cwd=tmp_path, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), **agent}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/sweeps/abc/trial1"
    assert (run / "COMPLETE").is_file()
    assert json.loads((run / "provenance.json").read_text())["wandb_run_id"] == "trial1"
    ranks = {(row["rank"], len(row["mmu"]), len(row["t2i"])) for row in lines(run / "samples.jsonl")}
    assert ranks == {(0, 1, 2), (1, 1, 2)}
    [offline] = tmp_path.rglob("offline-run-*")
    assert offline.name.endswith("-trial1")
    [record] = [entry["run"] for entry in wandb_entries(offline) if entry["type"] == "run"]
    assert (record["run_id"], record["sweep_id"], record["project"]) == ("trial1", "abc", "paper")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_agent_itself_leaves_its_trial_with_the_batch_script(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own code starts the sweep's command, as under slurm/sweep.sh; the server alone is missing."""
    trial, sweep = tmp_path / "trial", read_sweep(path)
    (tmp_path / "python").symlink_to(ROOT / "slurm/trial.sh")
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TRIAL": str(trial),
        "WANDB_DIR": str(tmp_path),
        "WANDB_SWEEP_ID": "abc",
        "WANDB_RUN_ID": "",  # the agent's to set
        "WANDB_SWEEP_PARAM_PATH": "",
        "WANDB_ENTITY": "us and them",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    parameters = {"data.micro_batch": {"mmu": 3, "t2i": 48}, "optim.lr": 1e-05, "model.lora": "none"}
    agent = Agent(None, None, sweep_id="abc", count=1)
    agent._sweep_command = list(sweep.content["command"])
    args = {key: {"value": value} for key, value in parameters.items()}
    agent._command_run({"run_id": "trial1", "program": sweep.content["program"], "args": args})
    process = agent._run_processes["trial1"]
    try:
        deadline = time.monotonic() + 30
        while not trial.is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # as slurm/sweep.sh reads it, and as the ranks see it
        names = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_SWEEP_PARAM_PATH")
        shown = f'source {trial}; printf "%s\\n" "${{words[@]}}"; printenv {" ".join(names)}'
        clean = {"PATH": os.environ["PATH"]}
        done = subprocess.run(["bash", "-c", shown], env=clean, capture_output=True, text=True, check=False)
        said = done.stdout.splitlines()
        assert said[:-4] == sweep.words(parameters)
        assert said[-4:-1] == ["trial1", "abc", "us and them"]
        assert Path(said[-1]).is_file()
        (tmp_path / "trial.ended").write_text("3\n")
        assert process.wait(30) == 3
    finally:
        if process.poll() is None:
            process.kill()
