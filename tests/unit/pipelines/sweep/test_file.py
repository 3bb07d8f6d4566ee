"""Sweep files are W&B's: what its own code makes of them, ours does too."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from callbacks.measures.registry import KEYS
from pipelines.run.config import load
from pipelines.run.overrides import ConfigError
from pipelines.sweep.file import Sweep, read_sweep
from tests.unit.pipelines.sweep.sweeps import ROOT, SWEEPS, needs_engine

GRID: dict[str, Any] = {
    "program": "pipelines/train.py",
    "method": "grid",
    "metric": {"name": "train/loss", "goal": "minimize"},
    "parameters": {"optim.lr": {"values": [0.1, 0.2, 0.3]}, "model.lora": {"values": ["task", "none"]}},
    "command": ["${env}", "${interpreter}", "-m", "pipelines.train", "a.yaml", "seed=1", "${args_no_hyphens}"],
}


def sweep(folder: Path, **changes: Any) -> Sweep:
    path = folder / "sweep.yaml"
    content = {key: value for key, value in (GRID | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return read_sweep(path)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_choice_of_every_sweep_is_a_configuration(path: Path) -> None:
    """Each value with the first of the others; a range by its ends."""
    given = read_sweep(path)
    choices = {
        key: spec.get("values") or [spec["min"], spec["max"]] for key, spec in given.content["parameters"].items()
    }
    points = [dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())]
    assert len(points) > 1
    configs = [load(ROOT / words[0], words[1:]) for words in map(given.words, points)]
    assert len({str(config) for config in configs}) == len(points)  # every choice changes something
    tasks = [task for task in KEYS if getattr(configs[0].evaluation, task) is not None]
    assert given.metric.split("/")[0] == "train" or given.metric.split("/")[1] in tasks


def test_the_sweeps_try_what_they_are_named_for() -> None:
    tried = {path.stem: set(read_sweep(path).content["parameters"]) for path in SWEEPS}
    assert tried == {
        "smoke": {"optim.lr", "model.adapters.rank"},
        "lr_rank": {"optim.lr", "model.adapters.rank"},
        "mixing": {"data.micro_batch"},
        "ablation": {"model.vocabularies", "model.lora"},
    }


def test_parameters_are_spelt_as_the_agent_spells_them(tmp_path: Path) -> None:
    parameters = {
        "optim.lr": 1e-05,
        "data.micro_batch": {"mmu": 3, "t2i": 48},
        "data.log_samples": True,
        "model.lora": "none",
    }
    agents = create_sweep_command_args({"args": {key: {"value": value} for key, value in parameters.items()}})
    words = sweep(tmp_path).words(parameters)
    assert words == ["a.yaml", "seed=1", *agents["args_no_hyphens"]]
    config = load(ROOT / "configs/smoke_unified.yaml", words[2:])
    assert (config.optim.lr, config.data.micro_batch.mmu, config.data.log_samples) == (1e-05, 3, True)
    assert config.model.lora == "none"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": None}, "names no metric to compare trials by; add metric: {name: train/loss, goal: minimize}"),
        ({"command": None}, r"command=None must be of the form \[\$\{interpreter\}, -m, pipelines.train, CONFIG.yaml"),
        ({"command": ["${interpreter}", "train.py", "${args}"]}, "must be of the form"),
        ({"command": [*GRID["command"][:-1], "${args}"]}, "must be of the form"),
        ({"command": [*GRID["command"], "run.dir=${envvar:X}"]}, "must be of the form"),
        ({"command": GRID["command"][:-1]}, "must be of the form"),
        (
            {"parameters": {"optim.lr": 3}},
            r"parameters.optim.lr=3 must say what to try, for example \{values: \[1, 2\]\}",
        ),
        ({"parameters": {"optim": {"parameters": {}}}}, "parameters.optim is nested; write its keys with dots"),
        ({"parameters": {"a": {"values": [1, None]}}}, "parameters.a tries null, .* add a=null to the command"),
        ({"parameters": {"a": {"value": None}}}, "parameters.a tries null"),
        ({"method": None}, "is not a sweep that W&B accepts:\n  - method=null must be grid, random or bayes"),
        ({"parameters": [{"optim.lr": {}}]}, r"  - parameters=\[.*\] must be keys, each with what to try, not a list"),
        ({"parameters": {"optim.lr": {"values": 0.1}}}, "  - parameters.optim.lr.values=0.1 must be a list, such as"),
        ({"run_cap": "4"}, "  - run_cap='4' must be a whole number, at least 1, without quotes"),
    ],
)
def test_what_trials_cannot_do_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(tmp_path, **changes)


def test_what_is_no_sweep_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("command: {")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_sweep(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="must hold keys and values at its top level"):
        read_sweep(path)
    with pytest.raises(ConfigError, match="does not exist; configs/sweeps/ holds the ones that come with the project"):
        read_sweep(tmp_path / "nothing.yaml")


def test_without_the_engine_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_PYTHON", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"engine is not installed .*Run `make sweeps`, or set SWEEPS_PYTHON"):
        sweep(tmp_path).suggest(0, [], 0)
    (tmp_path / "python").write_text("#!/bin/sh\necho no sweeps here >&2; exit 1\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(RuntimeError, match="no sweeps here"):
        sweep(tmp_path).suggest(0, [], 0)


@needs_engine
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_keep_to_the_schema_of_the_server(path: Path) -> None:
    """And their first trial is a configuration that loads."""
    given = read_sweep(path)
    parameters = given.suggest(0, [], 0)
    assert parameters is not None
    words = given.words(parameters)
    load(ROOT / words[0], words[1:])


@needs_engine
def test_a_grid_is_its_product_and_then_ends(tmp_path: Path) -> None:
    """In the order of W&B: parameters by name, the last changes first."""
    given = sweep(tmp_path)
    points = [given.suggest(number, [], 0) for number in (0, 1, 5, 6, 7)]
    assert points == [
        {"model.lora": "task", "optim.lr": 0.1},
        {"model.lora": "task", "optim.lr": 0.2},
        {"model.lora": "none", "optim.lr": 0.3},
        None,
        None,
    ]


@needs_engine
def test_random_trials_are_determined_by_number_and_seed(tmp_path: Path) -> None:
    ranges = {
        "optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "trainer.max_steps": {"min": 2, "max": 9},
    }
    given = sweep(tmp_path, method="random", parameters=ranges)
    one, two, other = given.suggest(4, [], 0), given.suggest(5, [], 0), given.suggest(4, [], 1)
    assert one == given.suggest(4, [{"parameters": one, "state": "finished", "value": 1.0}], 0)
    assert one is not None
    assert one not in (two, other)
    assert 1e-4 <= one["optim.lr"] <= 1e-2
    assert one["trainer.max_steps"] in range(2, 10)


@needs_engine
def test_bayes_goes_where_earlier_trials_were_good(tmp_path: Path) -> None:
    """The loss is the square of the distance to 0.7: known after nine points, so the tenth is near."""
    given = sweep(tmp_path, method="bayes", parameters={"optim.lr": {"min": 0.0, "max": 1.0}})
    tried = [number / 8 for number in range(9)]
    history = [{"parameters": {"optim.lr": x}, "state": "finished", "value": (x - 0.7) ** 2} for x in tried]
    history.append({"parameters": {"optim.lr": 0.05}, "state": "failed", "value": None})
    found = given.suggest(10, history, 0)
    assert found is not None
    assert math.isclose(found["optim.lr"], 0.7, abs_tol=0.1)
    assert found == given.suggest(10, history, 0)


@needs_engine
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "guess"}, "'guess' is not one of"),
        ({"colour": "red"}, "'colour' was unexpected"),
        ({"parameters": {"optim.lr": {"min": 2.0, "max": 1.0}}}, "min 2.0 is not less than max 1.0"),
        ({"parameters": {"optim.lr": {"min": 0.1, "max": 0.2}}}, "Grid search requires all parameters"),
        ({"parameters": None}, "`parameters` is required"),
    ],
)
def test_what_the_server_would_refuse_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = sweep(tmp_path, **changes)
    with pytest.raises(ConfigError, match=f"sweep.yaml is not a sweep that W&B accepts:\n.*{message}"):
        given.suggest(0, [], 0)
