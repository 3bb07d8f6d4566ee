"""Training through its real entry point: the run folder it leaves, kills, several processes, the chain of stages."""

import fcntl
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from callbacks.tracking import read_metrics
from modules.checkpoints import find_checkpoint, problem, read_state
from modules.stages import STAGES
from modules.trainable import set_trainable
from pipelines.run.compose import build_model
from pipelines.run.config import load

from .running import (
    ENVIRONMENT,
    LENGTH,
    NO_EVALUATION,
    ROOT,
    SAVED_EVERY,
    STEPS,
    UNIFIED,
    Train,
    assert_same_weights,
    command,
    keys_of_steps,
    kill_after,
    lines,
    losses,
    weights,
)


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run; it alone is evaluated at its end."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    evaluation = ["evaluation.gqa=null", "evaluation.fid=null", "evaluation.samples=null", "evaluation.pope.limit=2"]
    words = command(UNIFIED, *small, *evaluation, *LENGTH, f"run.dir={folder}")
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_run_folder_holds_what_the_design_says(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *(
            "config.yaml",
            "metrics.jsonl",
            "samples.jsonl",
            "checkpoints",
            "records",
            "tokenizer.json",
            "vq.safetensors",
            "provenance.json",
            "COMPLETE",
            ".lock",
        ),
    }
    assert (finished / "COMPLETE").read_text() == f"{STEPS}\n"
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert max(files, key=lambda path: path.stat().st_mtime_ns).name == "COMPLETE"
    checkpoints = sorted((finished / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-000000008", "step-000000012"]
    for path in checkpoints:
        assert problem(path) is None
    records = finished / "records" / f"step-{STEPS:09d}"
    assert set(json.loads((records / "results.json").read_text())) >= {"pope_style"}
    assert len(lines(records / "pope_style" / "rank0.jsonl")) == 6
    [facts] = json.loads((finished / "provenance.json").read_text())["attempts"]
    assert set(facts["data"]) == {"mmu", "t2i"}
    state = read_state(find_checkpoint(finished, pytest.fail))
    assert state["run"]["config"]["name"] == "smoke_unified"
    assert state["run"]["code"] == facts["code"]


def test_every_step_is_logged_once_with_all_its_numbers(finished: Path) -> None:
    rows = [row for row in lines(finished / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row.keys() >= {"step", "time", "attempt", "train/loss", "train/loss_mmu", "train/loss_t2i", "train/lr"}
        assert row["train/tokens_per_s"] > 0
        assert row["train/grad_norm"] > 0
        assert row["attempt"] == 1
        assert row["train/loss"] == pytest.approx(row["train/loss_mmu"] + row["train/loss_t2i"], rel=1e-6)
    assert rows[0]["train/lr"] == 1e-3
    assert [row["train/lr"] for row in rows] == sorted((row["train/lr"] for row in rows), reverse=True)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert any("eval/pope_style/f1_macro" in row for row in lines(finished / "metrics.jsonl"))


def test_every_micro_step_holds_the_papers_ratio(finished: Path) -> None:
    rows = lines(finished / "samples.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert (row["rank"], row["attempt"]) == (0, 1)
        assert (len(row["mmu"]), len(row["t2i"])) == (3, 48)
    first_epoch = [key for row in rows for key in row["t2i"]][:80]
    assert len(set(first_epoch)) == 80  # each sample once an epoch


def test_a_complete_run_is_left_alone(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    words = command(finished / "config.yaml")
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{finished} is complete (COMPLETE); nothing to do" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_training_again_from_nothing_gives_the_same_bits(finished: Path, train: Train, tmp_path: Path) -> None:
    train(UNIFIED, tmp_path / "run", *LENGTH)  # not evaluated: evaluation changes nothing in training
    assert losses(tmp_path / "run") == losses(finished)
    assert keys_of_steps(tmp_path / "run") == keys_of_steps(finished)
    assert_same_weights(weights(tmp_path / "run"), weights(finished))


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    finished: Path, train: Train, small: list[str], tmp_path: Path, sign: signal.Signals
) -> None:
    folder = tmp_path / "run"
    words = command(UNIFIED, *small, *NO_EVALUATION, *LENGTH, f"run.dir={folder}")
    kill_after(SAVED_EVERY + 1, words, folder, sign)
    assert not (folder / "COMPLETE").exists()
    checkpoint = find_checkpoint(folder, pytest.fail)
    tracked = json.loads((folder / "provenance.json").read_text())["wandb_run_id"]
    done = train(UNIFIED, folder, *LENGTH)
    assert f"resuming from {checkpoint}" in done.stdout
    assert done.stderr == ""  # nothing to be alarmed about
    saved = int(checkpoint.name.removeprefix("step-"))
    again = [row["step"] for row in lines(folder / "metrics.jsonl") if row["attempt"] == 2]
    assert again == list(range(saved + 1, STEPS + 1))
    assert losses(folder) == losses(finished)
    assert keys_of_steps(folder) == keys_of_steps(finished)
    assert_same_weights(weights(folder), weights(finished))
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["wandb_run_id"] == tracked
    assert [attempt["resumed"] for attempt in facts["attempts"]] == [None, checkpoint.name]


def test_two_processes_train_as_one_that_accumulates(train: Train, tmp_path: Path) -> None:
    # Dropout masks are keyed by rank and micro-step, so only without them are the two the same sum.
    common = ["trainer.max_steps=3", "model.adapters.dropout=0.0"]
    done = train(UNIFIED, tmp_path / "two", *common, "hardware.devices=2")
    assert "WARNING" not in done.stderr
    assert done.stdout.count("complete at step 3") == 1  # one process speaks
    train(UNIFIED, tmp_path / "one", *common, "data.global_batch={mmu: 6, t2i: 96}")
    whole = load(tmp_path / "two" / "config.yaml").data.global_batch
    assert whole is not None
    assert (whole.mmu, whole.t2i) == (6, 96)
    rows = lines(tmp_path / "two" / "samples.jsonl")
    assert [(row["step"], row["rank"]) for row in rows] == [(step, rank) for step in (1, 2, 3) for rank in (0, 1)]
    assert all((len(row["mmu"]), len(row["t2i"])) == (3, 48) for row in rows)
    assert keys_of_steps(tmp_path / "two") == keys_of_steps(tmp_path / "one")
    for two, one in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert two.keys() == one.keys()
        for key in two:
            # float32 sums of two gradients, in another order
            assert two[key] == pytest.approx(one[key], rel=1e-4), key


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_the_next_samples_on_another_number_of_processes(
    train: Train, tmp_path: Path, before: int, after: int
) -> None:
    """Resumed after an odd number of steps, so that a step out of phase with the accumulation would show."""
    common = ["trainer.max_steps=5", "model.adapters.dropout=0.0", "data.global_batch={mmu: 6, t2i: 96}"]
    saving = ["checkpoint.every_n_steps=1", "checkpoint.keep_last=9"]
    train(UNIFIED, tmp_path / "whole", *common, *saving, f"hardware.devices={before}")
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000000003", resumed / "checkpoints" / "step-000000003")
    shutil.copy(tmp_path / "whole" / "config.yaml", resumed)
    train(UNIFIED, resumed, *common, f"hardware.devices={after}")
    keys = keys_of_steps(tmp_path / "whole")
    assert keys_of_steps(resumed) == {step: keys[step] for step in (4, 5)}
    for row, expected in zip(losses(resumed), losses(tmp_path / "whole")[3:], strict=True):
        assert row == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}


def test_a_run_killed_during_its_last_evaluation_makes_up_for_it(
    finished: Path, small: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "COMPLETE").unlink()
    shutil.rmtree(folder / "records")
    rows = [line for line in (folder / "metrics.jsonl").read_text().splitlines(keepends=True) if "eval/" not in line]
    (folder / "metrics.jsonl").write_text("".join(rows))
    words = command(folder / "config.yaml", f"run.dir={folder}")
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (folder / "COMPLETE").is_file()
    expected, found = (
        json.loads((run / "records" / f"step-{STEPS:09d}" / "results.json").read_text()) for run in (finished, folder)
    )
    assert found["pope_style"]["metrics"] == expected["pope_style"]["metrics"]
    assert "eval/pope_style/f1_macro" in read_metrics(folder)[-1]


def test_the_unified_stage_starts_from_what_each_stage_trained(train: Train, tmp_path: Path) -> None:
    for task in ("mmu", "t2i"):
        train(f"configs/smoke_{task}.yaml", tmp_path / task, "trainer.max_steps=2")
    both = f"init_from=[{tmp_path / 'mmu'}, {tmp_path / 't2i'}]"
    # Too small a rate to move anything: what the run ends with is what it started from.
    done = train(UNIFIED, tmp_path / "unified", both, "trainer.max_steps=1", "optim.lr=1.0e-12")
    config = load(tmp_path / "unified" / "config.yaml")
    fresh = build_model(load(tmp_path / "mmu" / "config.yaml"), report=pytest.fail)
    initial = {name: value.clone() for name, value in fresh.state_dict().items()}
    trained = {task: set(set_trainable(fresh, STAGES[f"{task}_pretrain"].trainable).names) for task in ("mmu", "t2i")}
    assert config.init_from == (str(tmp_path / "mmu"), str(tmp_path / "t2i"))
    assert f"{len(trained['t2i'])} parameters from {tmp_path / 't2i'}" in done.stdout
    end = weights(tmp_path / "unified")
    for task in ("mmu", "t2i"):
        result = weights(tmp_path / task)
        for name in trained[task]:
            assert not torch.equal(result[name], initial[name]), name
            torch.testing.assert_close(end[name], result[name], rtol=0, atol=1e-9)
    for name in initial.keys() - trained["mmu"] - trained["t2i"]:
        torch.testing.assert_close(end[name], initial[name], rtol=0, atol=1e-9)


def test_what_a_user_can_mend_ends_as_a_message(finished: Path, train: Train, tmp_path: Path) -> None:
    done = train(UNIFIED, tmp_path / "run", "trainer.max_step=3", code=2)
    assert done.stderr.startswith("error: ")
    assert "there is no key trainer.max_step; did you mean trainer.max_steps=3?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    done = train(UNIFIED, finished, *LENGTH, "optim.lr=0.5", code=2)
    assert f"error: run folder {finished} belongs to another configuration:\n  optim.lr: 0.001 there, 0.5 now" in (
        done.stderr
    )
    assert "Traceback" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("sign", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)]
)
def test_a_stopped_run_says_so_by_its_exit_code(small: list[str], tmp_path: Path, sign: int, code: int) -> None:
    """0 would tell a batch script that the run is done."""
    folder = tmp_path / "run"
    words = command(UNIFIED, *small, *NO_EVALUATION, "trainer.max_steps=5000", f"run.dir={folder}")
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not read_metrics(folder):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(sign)
        stderr = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert process.returncode == code
    assert "start the same command again to go on from" in stderr
    assert not (folder / "COMPLETE").exists()


def test_a_run_that_diverges_is_stopped(train: Train, tmp_path: Path) -> None:
    done = train(
        UNIFIED, tmp_path / "run", "trainer.max_steps=12", "checkpoint.every_n_steps=1", "optim.lr=1e6", code=2
    )
    assert "is not finite: training diverged and is stopped before it is used. First seen in model." in done.stderr
    [file] = (tmp_path / "run").glob("not_finite_step*_rank0.json")
    found = json.loads(file.read_text())
    assert [len(found["samples"][0][task]) for task in ("mmu", "t2i")] == [3, 48]
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run").values())
    assert not (tmp_path / "run" / "COMPLETE").exists()


def test_a_runs_own_configuration_means_that_run_wherever_it_lies(finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    done = subprocess.run(command(moved / "config.yaml"), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{moved} is complete" in done.stdout


def test_a_training_tries_again_later_if_another_one_holds_its_folder(
    finished: Path, train: Train, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "COMPLETE").unlink()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = train(UNIFIED, folder, *LENGTH, "run.wait_seconds=0.1", code=75)
    assert f"another process holds run folder {folder}; wait for it, or choose another run.dir" in done.stderr
