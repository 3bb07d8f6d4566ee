"""Relative paths do not count from the folder that a verb is started in."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.config import RunConfig, load
from pipelines.run.overrides import ConfigError

CONFIGS = Path(__file__).parents[4] / "configs"
OWN = """
name: tiny
stage: {name: t2i_pretrain}
trainer: {max_steps: 2}
init_from: [runs/a]
model: {tokenizer: "t/${name}.json", vq: /v.pt}
data: {t2i: s3://bucket/m.json, cache: "${scenes.folder}/c"}
scenes: {folder: s}
"""


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from texts(getattr(value, field.name), f"{key}.{field.name}" if key else field.name)
    elif isinstance(value, str):
        yield key, value


def placed(config: RunConfig) -> tuple[str, str, str, str]:
    assert config.scenes is not None
    return config.model.tokenizer, config.model.vq, config.data.cache, config.scenes.folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_configurations_mean_the_projects_files_everywhere(path: Path, here: Path) -> None:
    """A key of a path that is forgotten in `PATHS` stays relative, and is found here."""
    config = load(path)
    named = {key: text for key, text in texts(config) if "/" in text and key != "checkpoint.best"}
    assert named
    assert {key: text for key, text in named.items() if not text.startswith(f"{CONFIGS.parent}/")} == {}


def test_paths_in_a_file_count_from_its_folder(here: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    config = load(tmp_path / "own.yaml")
    assert placed(config) == (f"{tmp_path}/t/tiny.json", "/v.pt", f"{tmp_path}/s/c", f"{tmp_path}/s")
    assert config.data.t2i == "s3://bucket/m.json"
    assert config.init_from == ("runs/a",)  # like the run folder itself
    assert config.folder == Path("runs/tiny")


def test_paths_below_configs_count_from_the_folder_that_holds_it(here: Path, tmp_path: Path) -> None:
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / "own.yaml").write_text(OWN)
    (tmp_path / "mine.yaml").write_text("include: configs/model/own.yaml\npretrained: p\n")
    config = load(tmp_path / "mine.yaml")
    assert placed(config)[0] == f"{tmp_path}/t/tiny.json"
    assert config.pretrained == f"{tmp_path}/p"
    (here / "configs").symlink_to(tmp_path / "configs")
    assert placed(load(here / "configs/model/own.yaml"))[0] == f"{here}/t/tiny.json"


def test_paths_on_the_command_line_count_from_the_current_folder(here: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    config = load(tmp_path / "own.yaml", ["scenes={folder: new}", "model.vq=v.pt"])
    assert placed(config) == (f"{tmp_path}/t/tiny.json", f"{here}/v.pt", f"{here}/new/c", f"{here}/new")
    assert load(tmp_path / "own.yaml", ["model.vq="]).model.vq == ""


def test_a_folder_named_like_an_interpolation_is_taken_as_it_is(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "${name}"
    folder.mkdir()
    (folder / "own.yaml").write_text(OWN)
    assert placed(load(folder / "own.yaml"))[0] == f"{folder}/t/tiny.json"


def test_what_a_file_in_a_linked_folder_includes_is_beside_its_true_place(here: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "base.yaml").write_text("seed: 7")
    (tmp_path / "data" / "mine" / "own.yaml").write_text(f"include: ../base.yaml\n{OWN}")
    (tmp_path / "project" / "configs").mkdir(parents=True)
    (tmp_path / "project" / "configs" / "base.yaml").write_text("seed: 8")
    (tmp_path / "project" / "configs" / "mine").symlink_to(tmp_path / "data" / "mine")
    config = load(tmp_path / "project" / "configs" / "mine" / "own.yaml")
    assert config.seed == 7
    # the paths in it still count as they read
    assert config.model.tokenizer == f"{tmp_path}/project/t/tiny.json"


def test_a_circle_through_a_linked_folder_is_named(here: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "x.yaml").write_text("include: self/x.yaml")
    with pytest.raises(ConfigError, match=r"x\.yaml includes itself"):
        load(tmp_path / "a" / "x.yaml")


def test_a_configuration_beside_a_folder_of_that_name_is_no_run(here: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(OWN.replace("${name}", "tiny"))
    (here / "t").mkdir()
    (here / "t" / "tiny.json").write_text("{}")
    assert load(tmp_path / "config.yaml").model.tokenizer == f"{tmp_path}/t/tiny.json"
    (tmp_path / "checkpoints" / "step-000000001").mkdir()
    assert load(tmp_path / "config.yaml").model.tokenizer == f"{here}/t/tiny.json"
