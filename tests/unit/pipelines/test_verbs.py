"""One command for all verbs, and what is said about a verb that there is not."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipelines import __main__ as command
from pipelines.run.verbs import mistaken_module, verbs
from tests.verbs import call

ROOT = Path(__file__).parents[3]
LIST = """
import runpy, sys
sys.argv = ["pipelines", *sys.argv[1:]]
try:
    runpy.run_module("pipelines", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
loaded = [name for name in sys.modules if name.startswith("pipelines.") and not name.startswith("pipelines.run")]
print("loaded:", *loaded, *(name for name in ("torch", "lightning", "omegaconf") if name in sys.modules))
"""


def listed(*words: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", LIST, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_alone_it_lists_every_verb_with_one_line_and_imports_none() -> None:
    lines = listed()
    assert lines[-1] == "loaded:"
    assert lines[0].startswith("omnimamba VERB ...")
    rows = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    every = "benchmark demo doctor evaluate export generate keys page prepare report sweep train"
    assert " ".join(rows) == every
    assert rows["train"] == "Train one stage."
    assert all(len(line) <= 132 for line in lines)


def test_a_verb_is_imported_alone_when_it_is_called() -> None:
    lines = listed("sweep", "--help")
    assert lines[0].startswith("usage: python -m pipelines.sweep")
    assert lines[-1] == "loaded: pipelines.sweep"


def test_the_console_script_is_this_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["omnimamba"].partition(":")
    assert getattr(importlib.import_module(module), name) is command.main


def test_a_verb_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "trian", "x.yaml") == 2
    said = capsys.readouterr().err
    assert said == f"error: there is no verb trian; did you mean train? There are {', '.join(verbs())}\n"
    assert call(command, "wombat") == 2
    assert "no verb wombat; There are" not in (said := capsys.readouterr().err)
    assert said.startswith("error: there is no verb wombat. There are benchmark, ")


def test_python_itself_is_told_the_near_verb() -> None:
    """It looks for the module inside this package, which is imported first."""
    command = [sys.executable, "-m", "pipelines.trian", "configs/smoke_unified.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no verb trian; did you mean train?")


@pytest.mark.parametrize(
    "words",
    [
        ["python", "-m", "pipelines"],
        ["python", "-m", "pipelines.train", "x"],
        ["python", "-u", "-m", "pipelines.report.__main__"],
        ["python", "-m", "pipelines.run.verbs"],
        ["python", "-m", "pytest", "-m", "pipelines.trian"],
        ["python", "-m"],
        ["python"],
    ],
)
def test_other_modules_are_left_to_python(words: list[str]) -> None:
    assert mistaken_module(words) is None
