"""`--help` of every verb answers without loading what only the work itself needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = [*(ROOT / "pipelines").glob("[!_]*.py"), *(ROOT / "pipelines").glob("*/__main__.py")]
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
    assert " ".join(VERBS) == "benchmark demo doctor evaluate export generate keys page prepare report sweep train"


WRONG = """
import contextlib, io, json, runpy, sys
answers = []
for verb, *words in json.loads(sys.argv[1]):
    sys.argv, code, said = [verb, *words], 0, io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            runpy.run_module(f"pipelines.{verb}", run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    loaded = [name for name in ("torch", "lightning", "transformers", "wandb") if name in sys.modules]
    answers.append([code, said.getvalue(), loaded])
print(json.dumps(answers))
"""
UNIFIED = "configs/smoke_unified.yaml"


MISTAKES: list[tuple[list[str], str]] = [
    (["train"], "error: name what to train: a configuration file of configs/ (demo_mmu.yaml, demo_t2i.yaml,"),
    (
        ["train", "configs"],
        "error: configs is a folder, but not a run folder; name a configuration file of configs/",
    ),
    (["train", "configs/smoke_unifed.yaml"], "does not exist; did you mean configs/smoke_unified.yaml?"),
    (
        ["train", "wombat.yaml"],
        "file wombat.yaml does not exist; configs/ holds the ones that come with the project",
    ),
    (
        ["train", "trainer.max_steps=20"],
        "error: trainer.max_steps=20 is an override; before it, name a configuration",
    ),
    (["train", "tests/unit/pipelines/test_help.py"], "test_help.py must hold keys and values"),
    (["train", UNIFIED, "max_steps=20"], "there is no key max_steps; did you mean trainer.max_steps=20?"),
    (["train", UNIFIED, "trainer.accelerator=gpu"], "did you mean hardware.accelerator=gpu?"),
    (["train", UNIFIED, "init_frm=[a,b]"], "did you mean 'init_from=[a,b]'?"),  # quoted, as zsh wants it
    (
        ["train", UNIFIED, "data.micro_batch={mmu: 1, t3i: 2}"],
        "data.micro_batch.t3i (given: 2): there is no such key",
    ),
    (
        ["train", UNIFIED, "a=1", "b=2"],
        "the command line:\n  - a=1: there is no key a; `python -m pipelines.keys` lists",
    ),
    (["train", UNIFIED, "20"], "override '20' is not of the form key=value"),
    (
        ["train", UNIFIED, "--trainer.max_steps=20"],
        "keys of the configuration are written without dashes: trainer.max",
    ),
    (["train", UNIFIED, "--trainer.max_steps", "20"], "are written without dashes: trainer.max_steps=20\n"),
    (["train", UNIFIED, "--max-steps=20", "--smoke"], "are written without dashes: trainer.max_steps=20\n"),
    (["train", UNIFIED, "--wombat"], "error: unrecognized argument: --wombat"),
    (["evaluate", "wombat", "a=1"], "error: wombat does not exist. Name one that pipelines.train made"),
    (["evaluate", "configs"], "configs is not a run folder: it has no config.yaml"),
    (["train", "data.mmu=/data/manifest.json"], "data.mmu=/data/manifest.json is an override; before it, name"),
    (["evaluate", UNIFIED, "--limit=5"], "evaluation.pope.limit=5 or evaluation.gqa.limit=5"),
    (["evaluate", UNIFIED, "evaluation.pop.limit=1"], "did you mean evaluation.pope.limit=1 or evaluation."),
    (["generate", UNIFIED, "text2image", "a", "red", "circle"], f'{UNIFIED} text2image "a red circle"\n'),
    (["generate", "wombat", "text2image", "a red circle"], "error: wombat does not exist"),
    (["export", UNIFIED, "out", "a=1"], "there is no key a"),
    (["page", "wombat"], "error: wombat does not exist"),
    (["doctor", "check", "configs"], "error: configs is a folder"),
    (["doctor", "memory", UNIFIED, "hardware.device=8"], "did you mean hardware.devices=8?"),
    (["demo", "max_steps=20"], "did you mean trainer.max_steps=20?"),
    (["sweep", "configs/sweeps/smoke.yaml", "max_steps=20"], "did you mean trainer.max_steps=20?"),
]


@pytest.fixture(scope="module")
def answers() -> list[tuple[int, str, list[str]]]:
    """Exit code, message and heavy modules of each mistake, one after the other in one process."""
    words = json.dumps([words for words, _ in MISTAKES])
    done = subprocess.run([sys.executable, "-c", WRONG, words], cwd=ROOT, capture_output=True, text=True, check=True)
    return [(code, said, loaded) for code, said, loaded in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=lambda number: " ".join(MISTAKES[number][0]))
def test_a_wrong_word_is_told_without_torch(number: int, answers: list[tuple[int, str, list[str]]]) -> None:
    code, said, loaded = answers[number]
    assert MISTAKES[number][1] in said
    assert "Traceback" not in said
    assert (code, loaded) == (2, [])


@pytest.mark.parametrize("verb", VERBS)
def test_help_answers_without_torch(verb: str) -> None:
    heavy = ["torch", "lightning", "transformers", "wandb", "peft", "deepspeed", "datasets"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, verb, *heavy], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m pipelines.{verb}" in done.stdout
    assert "Examples:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "module",
    [
        "pipelines.run.trained",
        "pipelines.evaluate",
        "pipelines.report.page",
        "pipelines.doctor.checks",
        "pipelines.page",
    ],
)
def test_what_trains_nothing_needs_no_lightning(module: str) -> None:
    """Importing Lightning takes four seconds."""
    script = f"import {module}, pipelines.run.config, sys; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
