"""A run that was killed and requeued three times: one W&B history, and a report that shows the restarts."""

import subprocess
import sys
from pathlib import Path

from callbacks.tracking import read_metrics
from tests.wandb_files import wandb_history

from .running import ENVIRONMENT, LENGTH, NO_EVALUATION, ROOT, STEPS, UNIFIED, command, kill_after, lines


def verb(*words: str) -> str:
    command = [sys.executable, "-m", "pipelines.report", *words]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_killed_and_requeued_three_times_reads_back_as_one_history(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = command(UNIFIED, *small, *NO_EVALUATION, *LENGTH, f"run.dir={folder}", "tracking.wandb=offline")
    for step in (6, 7, 10):  # saved every 4: the first goes back behind its last logged step for certain
        kill_after(step, words, folder)
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 4
    assert len(lines(folder / "metrics.jsonl")) > STEPS

    verb("sync", str(folder), "--offline")
    [merged] = (folder / "wandb_merged" / "wandb").glob("offline-run-*")
    history = wandb_history(merged)
    assert [row["step"] for row in history] == list(range(1, STEPS + 1))
    attempts = [row["attempt"] for row in history]
    assert attempts == sorted(attempts)
    assert attempts[-1] == 4
    for row, truth in zip(history, read_metrics(folder), strict=True):
        assert {key: row[key] for key in truth if key != "time"} == {k: v for k, v in truth.items() if k != "time"}

    verb(str(folder), "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert f"complete at step {STEPS}" in page
    assert "dotted: restarts; faint: repeated by a later attempt" in page
