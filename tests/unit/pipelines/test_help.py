"""`--help` of every verb answers without loading what only the work itself needs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = [*(ROOT / "pipelines").glob("*.py"), *(ROOT / "pipelines").glob("*/__main__.py")]
VERBS = sorted(
    path.parent.name if path.stem == "__main__" else path.stem
    for path in FILES
    if 'if __name__ == "__main__":' in path.read_text()
)
SCRIPT = """
import runpy, sys
verb, *heavy = sys.argv[1:]
sys.argv = [verb, "--help"]
code = None
try:
    runpy.run_module(f"pipelines.{verb}", run_name="__main__")
except SystemExit as end:
    code = end.code or 0
loaded = [name for name in heavy if name in sys.modules]
assert not loaded, f"--help of {verb} loads {loaded}"
sys.exit(code)
"""


def test_the_verbs_are_found() -> None:
    assert " ".join(VERBS) == "benchmark demo doctor evaluate export generate page prepare report sweep train"


@pytest.mark.parametrize("verb", VERBS)
def test_help_answers_without_torch(verb: str) -> None:
    heavy = ["torch", "lightning", "transformers", "wandb", "peft", "deepspeed", "datasets"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, verb, *heavy], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m pipelines.{verb}" in done.stdout
    assert "Examples:" in done.stdout
    assert done.stderr == ""
