"""The batch scripts, on a real Slurm: what they ask for, what they start, and what they make of how it ends.

A shell script stands in for Python, so that each test takes seconds; test_survival.py trains.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import Cluster
from .jobs import ROOT, SMALL, Job, Jobs

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
StandIn = Callable[[str], Path]
LEADER = '[ "$SLURM_PROCID" = 0 ] || exit 0\n'
COMPLETES = LEADER + 'touch "$run/COMPLETE"'


def started(calls: Path) -> list[str]:
    """How often each configuration was started, by its words."""
    return [line for line in calls.read_text().splitlines() if line.startswith("0 ")] if calls.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(cluster: Cluster, script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if not shutil.which("shellcheck", path=cluster.programs.path):
        pytest.skip("no shellcheck here; bash has parsed it")
    cluster.run("shellcheck", "--external-sources", script, cwd=ROOT)


@pytest.mark.parametrize("script", ["stage1.sh", "stage2.sh"])
def test_slurm_takes_what_the_scripts_ask_for_and_would_refuse_nonsense(cluster: Cluster, script: str) -> None:
    file = ROOT / "slurm" / script
    for options in ([], ["--nodes=2"], ["--gpus-per-node=1", "--ntasks-per-node=1"]):
        cluster.run("sbatch", "--test-only", *options, file, cwd=ROOT)
    assert "not available" in cluster.run("sbatch", "--test-only", "--gpus-per-node=9", file, cwd=ROOT, check=False)
    text = file.read_text()
    header = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    assert text.index("set -euo") > text.rindex("#SBATCH")  # Slurm reads none behind the first command
    assert {"--requeue", "--open-mode=append", "--signal=USR1@300"} <= set(header)
    log = next(line.split("=", 1)[1] for line in header if line.startswith("--output="))
    assert (ROOT / log).parent.is_dir()  # a folder that is not there fails the job without a word


@pytest.mark.parametrize(("nodes", "tasks"), [(1, 1), (2, 8)])
def test_every_rank_learns_its_place_from_slurm(
    jobs: Jobs, stand_in: StandIn, tmp_path: Path, nodes: int, tasks: int
) -> None:
    seen = "$SLURM_PROCID $SLURM_LOCALID $(hostname) $MASTER_ADDR $MASTER_PORT $SRUN_CPUS_PER_TASK"
    calls = stand_in(f'echo "{seen}" >>{tmp_path}/seen\n{COMPLETES}')
    options = (f"--nodes={nodes}", f"--ntasks-per-node={tasks}", f"--gpus-per-node={tasks}", "--array=0")
    job = jobs.submit("stage1.sh", "optim.lr=0.5", "data.global_batch={mmu: 3, t2i: 48}", options=options)
    job.element(0).wait("COMPLETED")
    rows = sorted((line.split() for line in (tmp_path / "seen").read_text().splitlines()), key=lambda row: int(row[0]))
    assert [int(row[0]) for row in rows] == list(range(nodes * tasks))
    assert [int(row[1]) for row in rows] == list(range(tasks)) * nodes
    assert len({row[2] for row in rows}) == nodes
    assert {tuple(row[3:]) for row in rows} == {(rows[0][2], rows[0][4], "8")}
    [words] = started(calls)
    run = tmp_path / "runs" / "smoke_mmu"
    assert words == (
        f"0 -m pipelines.train configs/smoke_mmu.yaml hardware.nodes={nodes} hardware.devices={tasks} "
        f"optim.lr=0.5 data.global_batch={{mmu: 3, t2i: 48}} run.dir={run}"
    )


def test_tasks_without_a_gpu_each_are_refused(jobs: Jobs, stand_in: StandIn) -> None:
    calls = stand_in(COMPLETES)
    job = jobs.submit("stage1.sh", options=(*SMALL, "--gpus-per-node=2", "--array=0")).element(0)
    job.wait("FAILED")
    assert "2 GPUs and 1 tasks on a node; --gpus-per-node and --ntasks-per-node must be equal" in job.log
    assert not started(calls)


def test_the_chain_hands_both_results_to_stage_2(jobs: Jobs, stand_in: StandIn, tmp_path: Path) -> None:
    calls = stand_in(COMPLETES)
    stage1, stage2 = chain(jobs, "seed=3")
    for job in (stage1.element(0), stage1.element(1), stage2):
        job.wait("COMPLETED")
    runs = tmp_path / "runs"
    configs = [words.split()[3] for words in started(calls)]
    assert sorted(configs[:2]) == ["configs/smoke_mmu.yaml", "configs/smoke_t2i.yaml"]
    assert configs[2:] == ["configs/smoke_unified.yaml"]
    assert f"init_from=[{runs}/smoke_mmu,{runs}/smoke_t2i] seed=3 run.dir={runs}/smoke_unified" in started(calls)[2]
    # what is complete is left alone: the chain can be submitted again
    stage1, stage2 = chain(jobs)
    for job in (stage1.element(0), stage1.element(1), stage2):
        job.wait("COMPLETED")
        assert "is complete; nothing to do" in job.log
    assert len(started(calls)) == 3


def test_a_failed_stage_ends_the_chain(jobs: Jobs, stand_in: StandIn) -> None:
    calls = stand_in(f"case $config in *t2i*) exit 2 ;; esac\n{COMPLETES}")
    stage1, stage2 = chain(jobs)
    stage2.wait("CANCELLED")
    assert (stage1.element(0).state, stage1.element(1).state) == ("COMPLETED", "FAILED")
    assert len(started(calls)) == 2


def test_a_dry_run_of_the_chain_submits_nothing(jobs: Jobs) -> None:
    before = jobs.cluster.run("scontrol", "show", "job")
    said = jobs.cluster.run("bash", "slurm/chain.sh", "--dry-run", "--nodes=2", "seed=3", cwd=ROOT)
    assert "sbatch --parsable --nodes=2 slurm/stage1.sh seed=3" in said
    assert "--dependency=afterok:ID --kill-on-invalid-dep=yes --nodes=2 slurm/stage2.sh seed=3" in said
    assert jobs.cluster.run("scontrol", "show", "job") == before
    refused = jobs.cluster.run("bash", "slurm/chain.sh", "--dry-run", "--nodes=3", cwd=ROOT, check=False)
    assert "allocation failure" in refused
    assert "error: stage3 is neither" in jobs.cluster.run("bash", "slurm/chain.sh", "stage3", cwd=ROOT, check=False)


def test_stage_2_wants_both_parts_of_stage_1(jobs: Jobs, stand_in: StandIn, tmp_path: Path) -> None:
    calls = stand_in(COMPLETES)
    jobs.environment["MMU_RUN"] = str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "COMPLETE").touch()
    job = jobs.submit("stage2.sh")
    job.wait("FAILED")
    assert f"error: {tmp_path}/runs/smoke_t2i is not complete; finish stage 1 first" in job.log
    assert not started(calls)


def test_stage_2_starts_from_what_it_is_told(jobs: Jobs, stand_in: StandIn) -> None:
    calls = stand_in(COMPLETES)
    jobs.submit("stage2.sh", "pretrained=weights.pth", "init_from=[]").wait("COMPLETED")
    (words,) = started(calls)
    assert "pretrained=weights.pth init_from=[] run.dir=" in words
    assert words.count("init_from=") == 1


def test_exit_code_0_without_complete_is_a_failure_tried_once_more(jobs: Jobs, stand_in: StandIn) -> None:
    calls = stand_in("exit 0")
    job = jobs.submit("stage2.sh", *finished_stage_1(jobs))
    job.release()
    job.wait("FAILED")
    assert "requeued: failed at no checkpoint" in job.log
    assert "failed at no checkpoint, 2 times in a row: another start would end the same way" in job.log
    assert len(started(calls)) == 2


def test_failures_with_progress_are_started_again_up_to_a_limit(jobs: Jobs, stand_in: StandIn) -> None:
    calls = stand_in(f'{LEADER}mkdir -p "$run/checkpoints/step-$((SLURM_RESTART_COUNT + 1))"; exit 7')
    jobs.environment["MAX_FAILURES"] = "2"
    job = jobs.submit("stage2.sh", *finished_stage_1(jobs))
    for number in (1, 2):
        job.release(number)
    job.wait("FAILED")
    assert "failed more than 2 times" in job.log
    assert len(started(calls)) == 3


def test_a_run_folder_that_another_job_holds_is_tried_again_later(jobs: Jobs, stand_in: StandIn) -> None:
    calls = stand_in(f'[ "${{SLURM_RESTART_COUNT:-0}}" != 0 ] || exit 75\n{COMPLETES}')
    job = jobs.submit("stage2.sh", *finished_stage_1(jobs))
    job.release()
    job.wait("COMPLETED")
    assert "requeued: stopped while it waited" in job.log
    assert len(started(calls)) == 2


def test_what_only_the_user_can_mend_is_not_started_again(jobs: Jobs, stand_in: StandIn) -> None:
    calls = stand_in("exit 2")
    job = jobs.submit("stage2.sh", *finished_stage_1(jobs))
    job.wait("FAILED")
    assert "a new start would not help" in job.log
    assert (len(started(calls)), job.restarts) == (1, 0)


STOPS_WHEN_TOLD = f"""
[ ! -e "$run/told" ] || {{ {COMPLETES}; exit 0; }}
exec {shlex.quote(sys.executable)} -S - "$run" <<'END'
# Python, as the training is: a shell cannot listen to what its parent blocked
import os, pathlib, signal, sys, time
run, told = pathlib.Path(sys.argv[1]), []
signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1, signal.SIGTERM])
(run / "running").touch()
while not told:
    time.sleep(0.05)
(run / "told").touch()
if os.environ["SLURM_PROCID"] == "0":
    (run / "PREEMPTED").write_text("7\\n")
    sys.exit(75)
END
"""


@pytest.mark.parametrize("to", ["--batch", "--full"])
def test_a_signal_to_the_batch_shell_reaches_the_ranks(jobs: Jobs, stand_in: StandIn, tmp_path: Path, to: str) -> None:
    """And the requeue is that of one element: the other part of stage 1 goes on."""
    stand_in(f"case $config in *t2i*) {COMPLETES}; exit 0 ;; esac\n{STOPS_WHEN_TOLD}")
    array = jobs.submit("stage1.sh")
    job = array.element(0)
    jobs.cluster.until((tmp_path / "runs" / "smoke_mmu" / "running").exists, "ranks")
    job.signal("USR1", to)
    job.again()
    assert "requeued: told to stop at step 7" in job.log  # appended to, not overwritten, by the second start
    assert (job.restarts, array.element(1).restarts) == (1, 0)


def test_a_cancelled_job_does_not_come_back(jobs: Jobs, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in(STOPS_WHEN_TOLD)
    job = jobs.submit("stage2.sh", *finished_stage_1(jobs))
    jobs.cluster.until((tmp_path / "runs" / "smoke_unified" / "running").exists, "ranks")
    jobs.cluster.run("scancel", "--full", job.id)
    job.wait("CANCELLED")
    assert job.restarts == 0


def test_being_told_to_stop_at_one_step_again_and_again_ends(jobs: Jobs, stand_in: StandIn) -> None:
    """A time limit below the time of the warning would otherwise start the job for ever."""
    calls = stand_in(f'{LEADER}echo 7 >"$run/PREEMPTED"; exit 75')
    job = jobs.submit("stage2.sh", *finished_stage_1(jobs))
    for number in (1, 2):
        job.release(number)
    job.wait("FAILED")
    assert "told to stop at step 7, 3 times in a row" in job.log
    assert len(started(calls)) == 3


def test_a_container_is_chosen_by_one_variable(jobs: Jobs, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    body = f'echo "$*" >>{tmp_path}/calls\nrun=${{@: -1}}; run=${{run#run.dir=}}\n{COMPLETES}'
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(0o755)
    path = f"{program.parent}:{jobs.cluster.programs.path}"
    jobs.environment |= {"OMNIMAMBA_ENV": "/images/train.sif", "PATH": path}
    jobs.submit("stage2.sh", *finished_stage_1(jobs)).wait("COMPLETED")
    inside = f"exec --nv --bind {ROOT} --pwd {ROOT} /images/train.sif python -m pipelines.train"
    assert (tmp_path / "calls").read_text().startswith(f"{inside} configs/smoke_unified.yaml")
    jobs.environment["OMNIMAMBA_ENV"] = str(tmp_path / "nowhere")
    job = jobs.submit("stage2.sh", f"run.dir={tmp_path}/other")
    job.wait("FAILED")
    assert f"error: OMNIMAMBA_ENV={tmp_path}/nowhere has no bin/python" in job.log


def test_submitted_from_elsewhere_the_repository_must_be_named(jobs: Jobs, stand_in: StandIn, tmp_path: Path) -> None:
    """Slurm runs a copy of the script, so the script cannot know where it came from."""
    stand_in(COMPLETES)
    words = finished_stage_1(jobs)
    job = jobs.submit("stage2.sh", *words, cwd=tmp_path)
    job.wait("FAILED")
    assert f"error: {tmp_path} is not the repository; submit from its root, or set OMNIMAMBA_ROOT" in job.log
    jobs.environment["OMNIMAMBA_ROOT"] = str(ROOT)
    jobs.submit("stage2.sh", *words, cwd=tmp_path).wait("COMPLETED")


def chain(jobs: Jobs, *words: str) -> tuple[Job, Job]:
    log = f"--output={jobs.folder}/%x-%j.log"
    said = jobs.cluster.run("bash", "slurm/chain.sh", log, *SMALL, *words, cwd=ROOT, **jobs.environment)
    ids = re.findall(r"slurm/stage(\d)\.sh: job (\d+)", said)
    assert [stage for stage, _ in ids] == ["1", "2"]
    return Job(jobs, ids[0][1]), Job(jobs, ids[1][1])


def finished_stage_1(jobs: Jobs) -> list[str]:
    """Run folders that stage 2 accepts; no overrides."""
    for name in ("smoke_mmu", "smoke_t2i"):
        run = jobs.folder / "runs" / name
        run.mkdir(parents=True, exist_ok=True)
        (run / "COMPLETE").touch()
    return []
