"""The README's commands, run as they stand, in a folder of their own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pages import ROOT, commands

COMMANDS = commands("README.md")
VERBS = [command for command in COMMANDS if "-m pipelines." in command]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds that the commands name."""
    made = tmp_path_factory.mktemp("clone")
    for name in ("configs", "tests"):
        (made / name).symlink_to(ROOT / name)
    return made


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[0] in (".venv/bin/python", "python")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_commands_of_use_work_one_after_the_other(folder: Path) -> None:
    elsewhere = (".page ", ".prepare ", "accelerator=gpu", "stage1_mmu", ".sweep ")
    use = [command for command in VERBS if not any(word in command for word in elsewhere)]
    assert [command.split("-m pipelines.")[1].split()[0] for command in use] == [
        "train", "evaluate", "generate", "generate", "report", "export", "doctor", "doctor",
    ]  # fmt: skip
    for command in use:
        done = run(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (folder / "runs/smoke/COMPLETE").is_file()
    assert (folder / "runs/smoke/circle.png").is_file()
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", lines], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")


def test_the_commands_for_own_data_ask_for_the_files_they_name(folder: Path) -> None:
    prepare = [command for command in VERBS if ".prepare " in command]
    assert len(prepare) == 2
    for command in prepare:
        done = run(command, folder)
        assert done.returncode == 2
        assert "does not exist" in done.stderr


def test_the_examination_of_the_papers_stage_names_what_is_missing(folder: Path) -> None:
    (command,) = [command for command in VERBS if "stage1_mmu" in command]
    done = run(command, folder)
    assert done.returncode == 1
    missing = folder / "weights/gpt-neox-20b/tokenizer.json"
    assert f"failed   tokenizer      tokenizer file {missing} does not exist" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_command_for_gpus_says_that_there_are_none(folder: Path) -> None:
    (command,) = [command for command in VERBS if "accelerator=gpu" in command]
    done = run(command, folder)
    assert done.returncode == 2
    assert "but this machine has 0 GPUs; use hardware.accelerator=cpu" in done.stderr


def test_scripts_and_files_that_commands_name_are_there() -> None:
    named = [word for command in COMMANDS for word in command.split() if word.startswith(("slurm/", "configs/"))]
    assert len(named) > 5
    assert [word for word in named if not (ROOT / word).is_file()] == []


def test_make_targets_exist() -> None:
    for command in (command for command in COMMANDS if command.startswith("make ")):
        done = subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"\b(?:DEMO|TEST)_[A-Z]+", (ROOT / "README.md").read_text())
