"""Which run folder a training gets."""

from pathlib import Path

import pytest

from pipelines import train
from pipelines.run.config import RunConfig
from tests.verbs import call

CONFIG = """
name: tiny
stage: {name: t2i_pretrain}
trainer: {max_steps: 2}
model: {tokenizer: t.json}
data: {t2i: m.json}
"""


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that would have been trained."""
    found: list[RunConfig] = []
    monkeypatch.setattr("pipelines.run.fit.fit", found.append)
    return found


@pytest.mark.parametrize("name", ["plain", "o'brien", "lr #2", "${name}", "\\${name}", "'quoted'", '"', "a: b", "[x"])
def test_the_configuration_in_a_run_folder_means_that_run(fitted: list[RunConfig], tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "provenance.json").write_text("{}")
    (folder / "config.yaml").write_text(CONFIG)
    assert call(train, folder / "config.yaml") == 0
    assert fitted[0].folder == folder
    assert call(train, folder / "config.yaml", "run.dir=elsewhere") == 0
    assert fitted[1].folder == Path("elsewhere")


def test_trials_of_an_agent_have_their_own_folders(
    fitted: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "o'brien #2")
    monkeypatch.setenv("WANDB_RUN_ID", "007")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    assert call(train, tmp_path / "tiny.yaml") == 0
    assert fitted[0].folder == Path("runs/sweeps/o'brien #2/007")
