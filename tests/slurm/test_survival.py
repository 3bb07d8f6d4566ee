"""Training on two nodes of a real Slurm, through everything that can end a job, against an uninterrupted run.

Every test compares losses, samples and weights to the bit, so a step lost, repeated or trained from elsewhere shows.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from callbacks.tracking import read_metrics
from datamodules.scenes.prepare import prepare_scenes
from pipelines.run.config import load
from tests.integration.running import (
    NO_EVALUATION,
    ROOT,
    assert_same_weights,
    keys_of_steps,
    lines,
    losses,
    weights,
)

from .jobs import SMALL, Job, Jobs

STEPS = 120
"""Of some 60 ms, so that there is time to end the job in the middle."""
CONFIG = "configs/smoke_mmu.yaml"
TWO_NODES = (*SMALL, "--nodes=2", "--array=0")


@pytest.fixture(scope="session")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small model on few scenes; with workers, which some clusters signal too."""
    words = [
        f"scenes.folder={tmp_path_factory.mktemp('data') / 'scenes'}",
        *("scenes.images=80", "scenes.val_images=4", "scenes.patch_size=8", "model.image_tokens=64", "model.n_layer=1"),
        *("tracking.wandb=disabled", "data.num_workers=1", f"trainer.max_steps={STEPS}", "checkpoint.every_n_steps=25"),
    ]
    config = load(ROOT / CONFIG, words).scenes
    assert config is not None
    prepare_scenes(config, say=lambda _: None)
    return [*words, *NO_EVALUATION]


Start = Callable[..., Job]
Check = Callable[[Job], None]


@pytest.fixture
def start(jobs: Jobs, overrides: list[str]) -> Start:
    """Submits stage 1's MMU part, with more options of sbatch and overrides."""

    def submit(*options: str, more: tuple[str, ...] = ()) -> Job:
        return jobs.submit("stage1.sh", *overrides, *more, options=(*TWO_NODES, *options)).element(0)

    return submit


@pytest.fixture
def run(jobs: Jobs) -> Path:
    """The run folder."""
    return Path(jobs.environment["RUNS"]) / "smoke_mmu"


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where `whole` keeps the run that it made."""
    return {"folder": tmp_path_factory.mktemp("uninterrupted")}


@pytest.fixture
def whole(jobs: Jobs, overrides: list[str], uninterrupted: dict[str, Path]) -> Path:
    """The same run on two nodes, never stopped; made once."""
    folder = uninterrupted["folder"] / "run"
    if not folder.exists():
        job = jobs.submit("stage1.sh", *overrides, f"run.dir={folder}", options=TWO_NODES).element(0)
        job.wait("COMPLETED")
    return folder


@pytest.fixture
def same(run: Path, whole: Path) -> Check:
    """Fails unless the job was requeued once, went on at the very step that was saved, and made the same run."""

    def check(job: Job) -> None:
        assert (run / "COMPLETE").read_text() == f"{STEPS}\n", job.log
        assert not (run / "PREEMPTED").exists()
        assert job.restarts == 1
        rows = lines(run / "metrics.jsonl")
        first, second = ([row["step"] for row in rows if row["attempt"] == attempt] for attempt in (1, 2))
        assert second == list(range(second[0], STEPS + 1))
        if f"saved at step {first[-1]};" in job.log:
            assert second[0] == first[-1] + 1
        else:  # no chance to save: the newest checkpoint before
            assert second[0] == first[-1] // 25 * 25 + 1
        assert losses(run) == losses(whole)
        assert keys_of_steps(run) == keys_of_steps(whole)
        assert_same_weights(weights(run), weights(whole))

    return check


def under_way(job: Job, run: Path, step: int = 10) -> None:
    """Wait until ``step`` is logged."""
    deadline = time.monotonic() + 90
    while not any(row["step"] >= step for row in read_metrics(run)):
        assert job.state in ("PENDING", "CONFIGURING", "RUNNING"), job.log
        assert time.monotonic() < deadline, job.log
        time.sleep(0.02)


def saved(job: Job) -> bool:
    return "saved at step" in job.log


def test_two_nodes_train_as_one_run(whole: Path) -> None:
    rows = lines(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    counts = load(whole / "config.yaml").data.global_batch
    assert counts is not None
    assert counts.mmu == 16
    assert {row["rank"] for row in lines(whole / "samples.jsonl")} == {0, 1}


def test_the_warning_before_the_time_limit(start: Start, run: Path, same: Check) -> None:
    """What ``--signal=USR1@300`` sends, to every process of the step: workers get it as well."""
    job = start()
    under_way(job, run)
    job.signal("USR1")
    job.again()
    assert saved(job)
    same(job)


@pytest.mark.slow
@pytest.mark.parametrize("how", [["TERM"], ["USR2"], ["USR1", "--batch"], ["USR1", "--full"]])
def test_signals(start: Start, run: Path, same: Check, how: list[str]) -> None:
    job = start()
    under_way(job, run)
    job.signal(*how)
    job.again()
    assert saved(job)
    same(job)


@pytest.mark.slow
def test_one_rank_alone_is_signalled(start: Start, run: Path, same: Check) -> None:
    job = start()
    under_way(job, run)
    os.kill(rank_process(run, rank=1), signal.SIGTERM)
    job.again()
    assert saved(job)
    assert "told to stop by a signal to another rank" in job.log
    same(job)


@pytest.mark.slow
def test_an_administrator_requeues(start: Start, run: Path, same: Check) -> None:
    job = start()
    under_way(job, run)
    job.jobs.cluster.run("scontrol", "requeue", job.id)
    job.again()
    assert saved(job)
    same(job)


@pytest.mark.slow
def test_a_job_of_higher_priority_takes_the_nodes(start: Start, run: Path, same: Check) -> None:
    job = start("--partition=low")
    under_way(job, run)
    words = ("--partition=main", "--nodes=2", "--exclusive", "--mem=1000", "--output=/dev/null", "--wrap=true")
    job.jobs.cluster.run("sbatch", *words)
    job.again()
    assert saved(job)
    same(job)


@pytest.mark.slow
def test_the_time_limit_itself(start: Start, run: Path, whole: Path) -> None:
    """Without a warning: the TERM at the limit saves, and the script answers TIMEOUT, which Slurm never requeues."""
    job = start("--time=1", "--signal=USR2@0", more=("data.num_workers=0", "trainer.max_steps=100000"))
    under_way(job, run)
    job.wait("PENDING", seconds=180)
    assert "DUE TO TIME LIMIT" in job.log
    assert saved(job)
    [step] = [int(row.split("step ")[1].split(";")[0]) for row in job.log.splitlines() if "saved at step" in row]
    job.release()
    under_way(job, run, step + 1)
    second = [row["step"] for row in lines(run / "metrics.jsonl") if row["attempt"] == 2]
    assert second[0] == step + 1


@pytest.mark.slow
def test_a_rank_is_killed(start: Start, run: Path, same: Check) -> None:
    job = start()
    under_way(job, run, 30)
    os.kill(rank_process(run, rank=1), signal.SIGKILL)
    job.again()
    assert "requeued: failed at step-" in job.log
    same(job)


@pytest.mark.slow
@pytest.mark.parametrize("node", ["node01", "node02"])
def test_a_node_loses_its_power(start: Start, run: Path, same: Check, node: str) -> None:
    """node01 runs the batch script and rank 0."""
    job = start()
    under_way(job, run, 30)
    job.jobs.cluster.cut_power(node)
    job.wait("PENDING", seconds=120)
    job.jobs.cluster.restore_power(node)
    job.again()
    same(job)


@pytest.mark.slow
def test_a_signal_while_everything_loads(start: Start, run: Path, whole: Path) -> None:
    job = start()
    job.wait("RUNNING")
    job.jobs.cluster.until(lambda: rank_process(run, rank=1), "rank 1")
    job.signal("USR1")
    job.again()
    assert "saved at step 0;" in job.log
    assert losses(run) == losses(whole)
    assert_same_weights(weights(run), weights(whole))


@pytest.mark.slow
def test_told_to_stop_again_before_the_first_new_step(start: Start, run: Path, whole: Path) -> None:
    job = start()
    under_way(job, run, 30)
    job.signal("USR1")
    job.release()
    job.wait("RUNNING")
    job.jobs.cluster.until(lambda: rank_process(run, rank=1), "rank 1")
    job.signal("USR1")
    job.again()
    saved = [row.split("saved at ")[1].split(";")[0] for row in job.log.splitlines() if "saved at step" in row]
    assert len(saved) == 2
    assert saved[0] == saved[1]
    assert losses(run) == losses(whole)
    assert_same_weights(weights(run), weights(whole))


@pytest.mark.slow
def test_checkpoints_of_other_runs_are_not_taken(start: Start, run: Path, whole: Path, tmp_path: Path) -> None:
    """Neither one that lies about, nor that of a folder that belongs to another configuration."""
    (ROOT / "hpc_ckpt_1.ckpt").write_bytes(b"stale")
    try:
        job = start()
        job.wait("COMPLETED")
    finally:
        (ROOT / "hpc_ckpt_1.ckpt").unlink()
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert losses(run) == losses(whole)
    (run / "COMPLETE").unlink()
    other = start(more=("optim.lr=0.5", f"trainer.max_steps={STEPS + 1}"))
    other.wait("FAILED")
    assert f"run folder {run} belongs to another configuration" in other.log
    assert other.restarts == 0


@pytest.mark.slow
def test_zero_2_is_stopped_and_goes_on(start: Start, run: Path) -> None:
    """DeepSpeed on two nodes without a GPU. Its sums are not DDP's to the bit, but its own they are."""
    zero = ("hardware.strategy=zero2",)
    reference = run.with_name("reference")
    start(more=(*zero, f"run.dir={reference}")).wait("COMPLETED", seconds=300)
    job = start(more=zero)
    under_way(job, run)
    job.signal("USR1")
    job.again(seconds=300)
    assert saved(job)
    assert losses(run) == losses(reference)
    assert_same_weights(weights(run), weights(reference))


def rank_process(run: Path, rank: int) -> int:
    """Process number of a rank of the job that trains in ``run``, 0 if there is none yet; not one of its workers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            place = f"SLURM_PROCID={rank}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile
            continue
        if place and b"pipelines.train" in words and f"run.dir={run}".encode() in words and b"python" in words[0]:
            found.append(int(process.name))
    return min(found, default=0)  # workers are forked later
