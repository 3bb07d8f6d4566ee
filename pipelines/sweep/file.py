"""Reads sweep files in W&B's own format, and asks W&B's engine what to try."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modules.reading import read_text, shown
from pipelines.run.overrides import ConfigError
from pipelines.run.yaml_shape import shape_problem

ROOT = Path(__file__).parents[2]
TRAIN = ["${interpreter}", "-m", "pipelines.train"]
PARAMETERS = "${args_no_hyphens}"
COMMAND = "[${interpreter}, -m, pipelines.train, CONFIG.yaml, ${args_no_hyphens}]"


@dataclass(frozen=True)
class Sweep:
    """One sweep file."""

    path: Path
    content: dict[str, Any]
    """The unchanged content of the file, as W&B and its engine get it."""
    config: str
    """The configuration that every trial trains."""
    fixed: tuple[str, ...]
    """Overrides that all trials share."""
    metric: str
    """Key of metrics.jsonl to compare trials by; as in W&B, its last value counts."""
    maximize: bool

    @property
    def method(self) -> str:
        """grid, random or bayes."""
        return str(self.content["method"])

    def words(self, parameters: Mapping[str, Any]) -> list[str]:
        """Arguments of ``pipelines.train`` for a trial: configuration and overrides, as `wandb agent` spells them."""
        return [self.config, *self.fixed, *(f"{key}={value}" for key, value in parameters.items())]

    def suggest(self, trial: int, history: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any] | None:
        """Parameters of trial number ``trial``, from 0; None if a grid has no more points.

        With grid and random, the parameters of a trial depend only on its number and the seed. With bayes they depend
        on ``history``, the earlier trials: {"parameters", "state": finished or failed, "value"} each.

        Raises:
            ConfigError: the file breaks a rule of W&B's format, or the engine is not installed.
        """
        answer = _ask({"sweep": self.content, "trial": trial, "history": list(history), "seed": seed})
        if problems := answer["problems"]:
            raise ConfigError(
                f"{self.path} is not a sweep that W&B accepts:\n" + "\n".join(f"  - {p}" for p in problems)
            )
        parameters: dict[str, Any] | None = answer["parameters"]
        return parameters


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file, and check what can be checked without the engine.

    Raises:
        ConfigError: it is missing or not YAML, or asks for something that trials of this project cannot do.
    """
    if not path.is_file():
        raise ConfigError(
            f"sweep file {path} does not exist; configs/sweeps/ holds the ones that come with the project"
        )
    text = read_text(path, "sweep file")
    try:
        if problem := shape_problem(path):
            raise ConfigError(f"{path} {problem}")
        content = yaml.safe_load(text)  # as W&B reads it: 1e-3 is a string, 1.0e-3 a number
    except (yaml.YAMLError, TypeError, LookupError) as error:  # the last two: a key that is a list, an odd escape
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values at its top level")
    _check_shape(path, content)
    metric = content.get("metric")
    if not isinstance(metric, dict) or "name" not in metric:
        raise ConfigError(
            f"{path} names no metric to compare trials by; add metric: {{name: train/loss, goal: minimize}}"
        )
    config, fixed = _command(path, content.get("command"))
    _check_parameters(path, content.get("parameters"))
    return Sweep(path, content, config, fixed, str(metric["name"]), metric.get("goal") == "maximize")


def _check_shape(path: Path, content: Mapping[str, Any]) -> None:
    """What W&B's engine takes for granted, and fails on without a message."""
    parameters, cap = content.get("parameters", {}), content.get("run_cap", 1)
    problems = []
    if not isinstance(content.get("method"), str):  # the engine says which names it knows
        problems.append(f"method={shown(content.get('method'))} must be grid, random or bayes")
    if type(cap) is not int or cap < 1:
        problems.append(f"run_cap={shown(cap)} must be a whole number, at least 1, without quotes")
    if not isinstance(parameters, dict):
        problems.append(f"parameters={shown(parameters)} must be keys, each with what to try, not a list or a value")
    for key, spec in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(spec, dict) and not isinstance(spec.get("values", []), list):
            problems.append(f"parameters.{key}.values={shown(spec['values'])} must be a list, such as [1, 2]")
    if problems:
        raise ConfigError(f"{path} is not a sweep that W&B accepts:\n" + "\n".join(f"  - {p}" for p in problems))


def _command(path: Path, command: Any) -> tuple[str, tuple[str, ...]]:
    words = [str(word) for word in command] if isinstance(command, list) else []
    words = [word for word in words if word != "${env}"]
    config, fixed = words[3:4], [word for word in words[4:] if word != PARAMETERS]
    if words[:3] != TRAIN or not config or words.count(PARAMETERS) != 1 or any("${" in word for word in config + fixed):
        raise ConfigError(
            f"{path}: command={command} must be of the form {COMMAND}. key=value words for all trials may follow the "
            "configuration. A single node, SLURM and a sweep without a server all start it"
        )
    return config[0], tuple(fixed)


def _check_parameters(path: Path, parameters: Any) -> None:
    for key, spec in parameters.items() if isinstance(parameters, dict) else ():
        if not isinstance(spec, dict):
            raise ConfigError(f"{path}: parameters.{key}={spec} must say what to try, for example {{values: [1, 2]}}")
        if "parameters" in spec:
            raise ConfigError(f"{path}: parameters.{key} is nested; write its keys with dots, as in {key}.name")
        if None in [spec.get("value", 0), *(spec.get("values") or [])]:
            raise ConfigError(
                f"{path}: parameters.{key} tries null, which `wandb agent` passes on as the word None; to set it for "
                f"all trials, add {key}=null to the command"
            )


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """Ask the engine, which runs in its own process, and return its answer."""
    python = Path(os.environ.get("SWEEPS_PYTHON") or ROOT / ".venv-sweeps/bin/python")
    if not python.is_file():
        raise ConfigError(
            f"W&B's sweep engine is not installed ({python}). It needs numpy below 2, so it has its own environment. "
            "Run `make sweeps`, or set SWEEPS_PYTHON to a Python that has the package sweeps"
        )
    done = subprocess.run(
        [python, "-c", "from pipelines.sweep.engine import main; main()"],
        cwd=ROOT, input=json.dumps(request), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"W&B's sweep engine failed under {python}:\n{done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
