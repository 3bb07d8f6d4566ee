"""Being told to stop, without a batch system: one process, several, before the first step, under torchrun."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from callbacks.tracking import read_metrics
from modules.checkpoints import problem
from tests.wandb_files import wandb_entries

from .running import (
    ENVIRONMENT,
    NO_EVALUATION,
    ROOT,
    Train,
    assert_same_weights,
    command,
    keys_of_steps,
    lines,
    losses,
    weights,
)

MMU = "configs/smoke_mmu.yaml"
STEPS = 30
LENGTH = [f"trainer.max_steps={STEPS}", "checkpoint.every_n_steps=100"]
PREEMPTED = 75


def tell(words: list[str], ready: Callable[[], int], sign: signal.Signals) -> tuple[int, str, str]:
    """Start ``words`` and send ``sign`` to the process that ``ready`` names once it names one; code and output."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (target := ready()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid if target < 0 else target, sign)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def after(step: int, folder: Path, target: Callable[[], int] = lambda: -1) -> Callable[[], int]:
    """``target`` once ``step`` is logged; -1 is the process that was started."""
    return lambda: target() if any(row["step"] >= step for row in read_metrics(folder)) else 0


def stopped_at(folder: Path) -> int:
    """The step in PREEMPTED, whose checkpoint is there and whole, although it was no step to save at."""
    step = int((folder / "PREEMPTED").read_text())
    [checkpoint] = (folder / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{step:09d}"
    assert problem(checkpoint) is None
    assert max(row["step"] for row in read_metrics(folder)) == step
    assert not (folder / "COMPLETE").exists()
    return step


def same_run(folder: Path, whole: Path, step: int) -> None:
    assert not (folder / "PREEMPTED").exists()
    assert min(row["step"] for row in lines(folder / "metrics.jsonl") if row["attempt"] == 2) == step + 1
    assert losses(folder) == losses(whole)
    assert keys_of_steps(folder) == keys_of_steps(whole)
    assert_same_weights(weights(folder), weights(whole))


def test_a_run_that_is_told_to_stop_saves_its_step_and_goes_on_from_it(
    train: Train, small: list[str], tmp_path: Path
) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    train(MMU, whole, *LENGTH)
    words = command(MMU, *small, *NO_EVALUATION, *LENGTH, f"run.dir={folder}", "tracking.wandb=offline")
    code, _, err = tell(words, after(3, folder), signal.SIGUSR1)
    assert code == PREEMPTED, err
    step = stopped_at(folder)
    assert f"WARNING: told to stop by SIGUSR1: saved at step {step}; start the same command again" in err
    [segment] = (folder / "wandb").glob("offline-run-*")
    ends = [entry for entry in wandb_entries(segment) if entry["type"] in ("preempting", "exit")]
    for end in ends:
        end[end["type"]].pop("runtime", None)  # whole seconds, there only if it took one
    assert [end[end["type"]] for end in ends] == [{}, {"exit_code": PREEMPTED}]  # which W&B shows as preempted
    train(MMU, folder, *LENGTH)
    same_run(folder, whole, step)


def test_one_of_two_processes_is_told_and_both_stop_after_the_same_step(
    train: Train, small: list[str], tmp_path: Path
) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    two = [*LENGTH, "hardware.devices=2"]
    train(MMU, whole, *two)
    words = command(MMU, *small, *NO_EVALUATION, *two, f"run.dir={folder}")
    code, _, err = tell(words, after(3, folder, lambda: other_process(folder)), signal.SIGTERM)
    assert code == PREEMPTED, err
    step = stopped_at(folder)
    assert "told to stop by a signal to another rank" in err
    train(MMU, folder, *two)
    same_run(folder, whole, step)


def test_told_while_it_loads_a_run_stops_before_its_first_step(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = command(MMU, *small, *NO_EVALUATION, *LENGTH, f"run.dir={folder}")
    code, _, err = tell(words, lambda: -1 if (folder / ".lock").exists() else 0, signal.SIGTERM)
    assert code == PREEMPTED, err
    assert (folder / "PREEMPTED").read_text() == "0\n"
    assert read_metrics(folder) == []
    assert not (folder / "checkpoints").exists()


def test_torchrun_starts_processes_that_share_what_rank_0_opened(
    train: Train, small: list[str], tmp_path: Path
) -> None:
    """And a complete run is left alone by all of them."""
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    words = [MMU, *small, *NO_EVALUATION, "trainer.max_steps=2", "hardware.devices=2", f"run.dir={folder}"]
    for said in ("complete at step 2", "is complete (COMPLETE); nothing to do"):
        done = subprocess.run(
            [*torchrun, "pipelines.train", *words],
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(said) == 1
    train(MMU, tmp_path / "own", "trainer.max_steps=2", "hardware.devices=2")
    assert losses(folder) == losses(tmp_path / "own")
    done = subprocess.run(
        [*torchrun, "pipelines.train", *words, "optim.lr=0.5"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("belongs to another configuration") == 1  # rank 0 says it, the other ends


def other_process(folder: Path) -> int:
    """Process number of the rank that Lightning started, 0 if there is none."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if f"run.dir={folder}".encode() in words and b"LOCAL_RANK=1" in (process / "environ").read_bytes():
                return int(process.name)
        except OSError:  # gone meanwhile
            continue
    return 0
