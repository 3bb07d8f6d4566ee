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
