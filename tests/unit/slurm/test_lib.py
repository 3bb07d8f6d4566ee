"""The functions of slurm/lib.sh that need no Slurm."""

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
