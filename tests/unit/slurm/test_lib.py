"""The functions of slurm/lib.sh that need no Slurm."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ASK = 'set -euo pipefail; . slurm/lib.sh; RUN=$1; shift; STEPS=$(steps_of "$@"); is_complete && echo yes || echo no'
WITHOUT = "include: [a.yaml]\n"


@pytest.mark.parametrize(
    ("config", "words", "complete", "answer"),
    [
        ("trainer: {max_steps: 20}\n", [], None, "no"),
        ("trainer: {max_steps: 20}\n", [], "20\n", "yes"),
        ("trainer: {max_steps: 40, log_every_n_steps: 1}\n", [], "20\n", "no"),
        ("trainer:\n  max_steps: 1_000  # more\n", [], "1000\n", "yes"),
        ("trainer: {max_steps: 20}\n", ["trainer.max_steps=40", "seed=20"], "20\n", "no"),
        ("trainer: {max_steps: 20}\n", ["trainer.max_steps=40", "trainer.max_steps=20"], "20\n", "yes"),
        ("trainer: {max_steps: 40}\n", ["trainer.max_steps=20"], "20\n", "yes"),
        ("trainer: {max_steps: 20}\n", ["trainer.max_steps=10"], "20\n", "no"),
        (WITHOUT, [], "20\n", "yes"),
        (WITHOUT, ["trainer.max_steps=21"], "20\n", "no"),
        (WITHOUT, ["trainer.max_steps=many"], "20\n", "yes"),
        ("trainer: {max_steps: 20}\n", [], "", "yes"),
        ("trainer: {max_steps: 100}\n", ["trainer={max_steps: 50}"], "50\n", "yes"),
        ("trainer: {max_steps: 50}\n", ["trainer={log_every_n_steps: 1, max_steps: 1_00}"], "50\n", "no"),
        ("trainer: {max_steps: 50}\n", ["trainer={log_every_n_steps: 1}"], "50\n", "yes"),
        ("trainer: {max_steps: 50}\n", ["trainer.max_steps=40", "trainer={max_steps: 60}"], "50\n", "no"),
        ("trainer: {max_steps: 50}  # max_steps: 20\n", [], "50\n", "yes"),
        ("trainer:\n  # max_steps: 20\n  max_steps: 50\n# try max_steps: 30\n", [], "20\n", "no"),
        ("trainer: {max_steps: 20, other_max_steps: 50}\n", [], "50\n", "yes"),
        ("trainer: {max_steps: 20}\nname: 'max_steps: 50'\n", [], "50\n", "yes"),
        ("trainer: {max_steps: 0144}\n", [], "100\n", "yes"),
        ("trainer: {max_steps: 20}\n", ["trainer.max_steps=0144"], "100\n", "yes"),
        ("trainer: {max_steps: 20}\n", ["trainer.max_steps=0x64"], "100\n", "yes"),
        ("trainer: {max_steps: 20}\n", ["trainer={max_steps: '100'}"], "100\n", "yes"),
    ],
)
def test_a_run_is_complete_only_at_the_step_that_is_asked_for(
    tmp_path: Path, config: str, words: list[str], complete: str | None, answer: str
) -> None:
    (tmp_path / "c.yaml").write_text(config)
    if complete is not None:
        (tmp_path / "COMPLETE").write_text(complete)
    command = ["bash", "-c", ASK, "lib", str(tmp_path), str(tmp_path / "c.yaml"), *words]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == f"{answer}\n"


END = """set -euo pipefail; . slurm/lib.sh
scontrol() { echo JobState=RUNNING; }
requeue() { echo "requeued: $1"; exit 75; }
RUN=$1 JOB=1 STEPS=$(steps_of "$2" "${@:5}") BEFORE=$(completed)
[ -z "$4" ] || { rm -f "$RUN/COMPLETE"; echo "$4" >"$RUN/COMPLETE"; }
settle "$3"
"""
"""Ends a job whose training left the code $3 and, if $4 is not empty, a new COMPLETE."""


@pytest.mark.parametrize(
    ("words", "before", "new", "code", "ends"),
    [
        (["trainer={max_steps: 50}"], None, "50", 0, 0),
        (["trainer.max_steps=0100"], None, "64", 0, 0),
        ([], None, "50", 0, 0),  # whatever the guess is: Python has reached its end
        ([], "50", "", 0, 0),
        ([], None, "50", 143, 0),  # a rank was late
        ([], "50", "100", 1, 0),
        ([], "50", "", 1, 75),  # it was to go on from there, and failed
        (["trainer.max_steps=many"], "50", "", 1, 75),
        ([], "50", "", 2, 2),
        ([], None, "", 0, 75),
    ],
)
def test_a_job_succeeds_if_its_training_has_reached_its_end(
    tmp_path: Path, words: list[str], before: str | None, new: str, code: int, ends: int
) -> None:
    (tmp_path / "c.yaml").write_text("trainer: {max_steps: 100}\n")
    if before is not None:
        (tmp_path / "COMPLETE").write_text(before)
    command = ["bash", "-c", END, "lib", str(tmp_path), str(tmp_path / "c.yaml"), str(code), new, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == ends, done.stdout + done.stderr


PROGRAMS = """set -euo pipefail
sbatch() { printf '%s\\n' "$@" >>sbatch.txt; echo 7; }
scontrol() { echo JobState=RUNNING; }
srun() { while [[ $1 == --* ]]; do shift; done; "$@"; }
export -f sbatch scontrol srun
"""
"""What Slurm's programs do, as far as words go."""

PYTHON = """#!/bin/bash
printf '%s\\n' "$@" >words.txt
run=${@: -1}
touch "${run#run.dir=}/COMPLETE"
"""

JOB = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node",
    "SLURM_JOB_NAME": "stage2", "DOCTOR": "0",
}  # fmt: skip


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the project whose path needs quotes, with a shell script in the place of Python."""
    folder = tmp_path / "my clone (2)"
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("slurm", "configs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_each_word_reaches_the_training_whole_from_a_folder_whose_name_needs_quotes(clone: Path) -> None:
    runs = clone / "my runs"
    for name in ("stage1_mmu", "stage1_t2i"):
        (runs / name).mkdir(parents=True)
        (runs / name / "COMPLETE").touch()
    words = ["data.micro_batch={mmu: 3, t2i: 48}", "name=two words"]
    environment = {**os.environ, **JOB, "SLURM_SUBMIT_DIR": str(clone), "RUNS": str(runs)}
    environment["OMNIMAMBA_ENV"] = str(clone / ".venv")
    command = ["bash", "-c", f'{PROGRAMS}bash slurm/stage2.sh "$@"', "job", *words]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "words.txt").read_text().splitlines() == [
        "-m", "pipelines.train", "configs/stage2_unified.yaml", "hardware.nodes=1", "hardware.devices=1",
        f"init_from=[{runs}/stage1_mmu,{runs}/stage1_t2i]", *words, f"run.dir={runs}/stage2_unified",
    ]  # fmt: skip


def test_the_chain_passes_each_word_whole_and_prints_commands_that_can_be_pasted(clone: Path) -> None:
    words = ["--partition=gpu", "data.micro_batch={mmu: 3, t2i: 48}", "init_from=[a,b]"]
    command = ["bash", "-c", f'{PROGRAMS}bash slurm/chain.sh "$@"', "chain", *words]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    passed = (clone / "sbatch.txt").read_text().splitlines()
    assert passed[:5] == ["--parsable", "--partition=gpu", "slurm/stage1.sh", *words[1:]]
    printed = [line for line in done.stdout.splitlines() if line.startswith("sbatch ")]
    assert printed[0] == (
        "sbatch --parsable --partition=gpu slurm/stage1.sh 'data.micro_batch={mmu: 3, t2i: 48}' 'init_from=[a,b]'"
    )
    assert [shlex.split(line)[1:] for line in printed] == [passed[:5], passed[5:]]
