"""What stands around the code: declared dependencies, recipes for containers, the citation."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
OWN = ("pipelines", "callbacks", "datamodules", "modules")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ELSEWHERE = {"sweeps", "jsonschema", "lmms_eval"}
"""The first two are imported by pipelines/sweep/engine.py alone, in an environment of its own (make sweeps); the third
imports us, and its packages do not go with ours."""
BROUGHT_ALONG = {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d", "triton": "triton"}
"""Packages for GPUs, which are not installed here."""
NOT_IMPORTED = {"torch-fidelity", "torchvision", "tensorboard"}
"""The first two read FID's network (docs/fid.md); torch.utils.tensorboard imports the third."""


def name(requirement: str) -> str:
    """The distribution that a requirement names, in the normal form."""
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def imported() -> set[str]:
    """Top names of what the packages import from others."""
    found = set()
    for path in (path for folder in OWN for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(OWN) - ELSEWHERE


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    owners = packages_distributions()
    needed = {BROUGHT_ALONG.get(top) or name(owners[top][0]) for top in imported()}
    extras = {extra: parts for extra, parts in PROJECT["optional-dependencies"].items() if extra != "dev"}
    declared = {name(part) for parts in (PROJECT["dependencies"], *extras.values()) for part in parts}
    assert needed - declared == set()
    assert declared - needed == NOT_IMPORTED


def test_both_containers_hold_the_same_and_name_files_that_are_there() -> None:
    docker = (ROOT / "slurm/containers/Dockerfile").read_text()
    apptainer = (ROOT / "slurm/containers/omnimamba.def").read_text()
    (base,) = re.findall(r"^FROM (\S+)$", docker, re.MULTILINE)
    assert re.findall(r"^From: (\S+)$", apptainer, re.MULTILINE) == [base]
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", docker, re.MULTILINE) for word in line.split()}
    assert set(re.findall(r"^    (\S+) /opt/omnimamba/\S+$", apptainer, re.MULTILINE)) == copied
    assert copied >= {"pyproject.toml", *OWN}
    assert [each for each in copied if not (ROOT / each).exists()] == []
    installed = re.findall(r"pip install --no-cache-dir (.+?)(?: \\)?$", docker + apptainer, re.MULTILINE)
    assert installed[:2] == installed[2:]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"## {citation['version']} ({citation['date-released']})" in (ROOT / "CHANGELOG.md").read_text()


def test_commits_are_checked_as_ci_checks() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix") for hook in local["hooks"]}
    lint = (ROOT / "Makefile").read_text().split("lint: ")[1].split("format: ")[0]
    checks = {line.removeprefix("\t$(VENV)/bin/") for line in lint.splitlines() if line.startswith("\t$(VENV)/bin/")}
    assert hooks == {check.removesuffix(" --check .").removesuffix(" .") for check in checks}
