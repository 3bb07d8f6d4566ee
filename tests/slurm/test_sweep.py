"""slurm/sweep.sh on a real Slurm: an array of trials, without a server and with W&B's agents."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines.sweep.file import read_sweep
from tests.unit.pipelines.sweep.sweeps import needs_engine

from .jobs import ROOT, SMALL, Jobs

SMOKE = "configs/sweeps/smoke.yaml"
StandIn = Callable[[str], Path]
TINY = [
    "scenes.images=80", "scenes.val_images=4", "scenes.patch_size=8", "model.image_tokens=64", "model.n_layer=1",
    "tracking.wandb=disabled", "trainer.max_steps=2", "data.micro_batch={mmu: 1, t2i: 2}",
    *(f"evaluation.{task}=null" for task in ("pope", "gqa", "fid", "samples", "speed")),
]  # fmt: skip

AGENT = """
if [ "$2" = wandb ]; then
    [ "$3 $4 $5" = "agent --count 1" ] || exit 9
    export WANDB_SWEEP_ID=abc WANDB_RUN_ID=run-$SLURM_ARRAY_TASK_ID WANDB_ENTITY=us WANDB_PROJECT=paper
    exec /usr/bin/env python -m pipelines.train configs/smoke_unified.yaml \\
        "data.micro_batch={'mmu': 3, 't2i': 48}" optim.lr=0.001
fi
"""
"""What `wandb agent` does, as far as the script can see it: it names the run and starts the command of the sweep."""


def trained(calls: Path) -> list[str]:
    """Words of every training, of rank 0."""
    words = [line for line in calls.read_text().splitlines() if "-m pipelines.train" in line]
    return [line for line in words if line.startswith("0 ")]


def test_agents_are_asked_once_a_task_and_a_requeued_task_keeps_its_trial(
    jobs: Jobs, stand_in: StandIn, tmp_path: Path
) -> None:
    """Task 0 is told to stop; its second start is the same W&B run with the same words, and no second trial."""
    calls = stand_in(
        AGENT
        + f"""echo "$WANDB_SWEEP_ID $WANDB_RUN_ID $WANDB_ENTITY $WANDB_PROJECT" >>{tmp_path}/identities
        [ "$SLURM_PROCID" = 0 ] || exit 0
        [ "$WANDB_RUN_ID$SLURM_RESTART_COUNT" != run-0 ] || {{ echo 7 >"$run/PREEMPTED"; exit 75; }}
        touch "$run/COMPLETE" """
    )
    array = jobs.submit("sweep.sh", "us/paper/abc", "seed=3", options=(*SMALL, "--nodes=2", "--array=0-1"))
    jobs.cluster.until((tmp_path / "runs/sweeps/abc/run-0/PREEMPTED").exists, "training")
    array.element(0).again()
    array.element(1).wait("COMPLETED")
    assert (array.element(0).restarts, array.element(1).restarts) == (1, 0)
    asked = [line for line in calls.read_text().splitlines() if "-m wandb" in line]
    assert [line.split(" ", 1)[1] for line in asked] == ["-m wandb agent --count 1 us/paper/abc"] * 2
    words = (
        "0 -m pipelines.train configs/smoke_unified.yaml hardware.nodes=2 hardware.devices=1 "
        "data.micro_batch={'mmu': 3, 't2i': 48} optim.lr=0.001 seed=3"
    )
    folders = [f"run.dir={tmp_path}/runs/sweeps/abc/run-{task}" for task in (0, 0, 1)]
    assert sorted(trained(calls)) == [f"{words} {folder} {folder}" for folder in folders]
    identities = (tmp_path / "identities").read_text().splitlines()
    assert sorted(identities) == ["abc run-0 us paper"] * 4 + ["abc run-1 us paper"] * 2  # two ranks, task 0 twice


def test_a_sweep_without_trials_left_ends_well_and_one_that_cannot_be_asked_does_not(
    jobs: Jobs, stand_in: StandIn
) -> None:
    calls = stand_in('[ "$6" != us/paper/broken ] || exit 3')
    options = (*SMALL, "--array=5")
    empty = jobs.submit("sweep.sh", "us/paper/done", options=options).element(5)
    broken = jobs.submit("sweep.sh", "us/paper/broken", options=options).element(5)
    empty.wait("COMPLETED")
    broken.wait("FAILED")
    assert "us/paper/done has no trial for this task" in empty.log
    assert "error: no trial from us/paper/broken; see above" in broken.log
    assert not trained(calls)


def test_another_command_than_training_is_refused(jobs: Jobs, stand_in: StandIn) -> None:
    stand_in(AGENT.replace("pipelines.train", "pipelines.evaluate"))
    job = jobs.submit("sweep.sh", "us/paper/abc", options=(*SMALL, "--array=0")).element(0)
    job.wait("COMPLETED", "FAILED")
    assert "slurm/sweep.sh needs: python -m pipelines.train CONFIG" in job.log
    assert job.state == "FAILED"


def test_a_sweep_is_an_array(jobs: Jobs, stand_in: StandIn) -> None:
    stand_in("exit 0")
    for words, message in (
        (["us/paper/abc"], "error: a sweep is an array of trials; add --array=0-3%2"),
        ([], "error: name a file of configs/sweeps/, or a W&B sweep as ENTITY/PROJECT/SWEEP_ID"),
    ):
        job = jobs.submit("sweep.sh", *words)
        job.wait("FAILED")
        assert message in job.log


def test_slurm_takes_what_the_script_asks_for(jobs: Jobs) -> None:
    for options in ([], ["--nodes=2"], ["--gpus-per-node=1", "--ntasks-per-node=1"]):
        jobs.cluster.run("sbatch", "--test-only", "--array=0-3%2", *options, ROOT / "slurm/sweep.sh", cwd=ROOT)


def test_what_stands_in_for_python_is_clean() -> None:
    for script in ("sweep.sh", "trial.sh"):
        subprocess.run(["bash", "-n", str(ROOT / "slurm" / script)], check=True)
        assert os.access(ROOT / "slurm" / script, os.X_OK)


@needs_engine
def test_without_a_server_each_task_of_the_array_trains_its_trial(jobs: Jobs, tmp_path: Path) -> None:
    """Two real trials; then the verb finds both done, trains nothing, and names the better one."""
    folder, words = tmp_path / "sweep", [*TINY, f"scenes.folder={tmp_path}/scenes"]
    jobs.environment["SWEEP_FOLDER"] = str(folder)
    array = jobs.submit("sweep.sh", SMOKE, *words, options=(*SMALL, "--array=0-1%1"))
    for number in (0, 1):
        array.element(number).wait("COMPLETED", seconds=240)
    points = [read_sweep(ROOT / SMOKE).suggest(number, [], 0) for number in (0, 1)]
    command = [sys.executable, "-m", "pipelines.sweep", SMOKE, "--trials", "2", "--folder", str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()[1:]]
    finished = [row for row in rows if row["state"] == "finished"]
    assert [row["parameters"] for row in finished] == points
    lower = min(finished, key=lambda row: row["value"])
    assert f"best: trial-00{lower['number']}, train/loss {lower['value']:.5g}" in done.stdout
    assert not list(folder.glob("*.log"))  # it started none


@needs_engine
def test_a_task_beyond_the_grid_fails_with_the_reason(jobs: Jobs, tmp_path: Path) -> None:
    jobs.environment["SWEEP_FOLDER"] = str(tmp_path / "sweep")
    job = jobs.submit("sweep.sh", SMOKE, options=(*SMALL, "--array=6")).element(6)
    job.wait("FAILED")
    assert "the grid has no trial 6; trials count from 0" in job.log
