"""Which run folder a training gets."""

from pathlib import Path

import pytest

from pipelines import train
from pipelines.run.config import RunConfig, load
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


def test_a_run_folder_means_its_configuration_and_goes_on(fitted: list[RunConfig], tmp_path: Path) -> None:
    """Also one whose provenance was lost: its checkpoints say that it is a run."""
    folder = tmp_path / "my run"
    (folder / "checkpoints" / "step-000000001").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    assert call(train, folder, "trainer.max_steps=4") == 0
    assert (fitted[0].folder, fitted[0].trainer.max_steps) == (folder, 4)
    assert call(train, folder, "run.dir=elsewhere") == 0
    assert fitted[1].folder == Path("elsewhere")


def test_what_is_no_run_to_go_on_with(
    fitted: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = tmp_path / "run" / "checkpoints" / "step-000000001"
    for folder in (step, tmp_path / "exported", tmp_path / "mine"):
        folder.mkdir(parents=True)
    for file in ("run/config.yaml", "exported/config.yaml", "mine/one.yaml"):
        (tmp_path / file).write_text(CONFIG)
    (step / "manifest.json").write_text("{}")
    (tmp_path / "exported" / "export.json").write_text("{}")
    for named, message in (
        (step, f"{step} is a checkpoint; name its run folder, {tmp_path / 'run'}, to go on from the latest"),
        (
            tmp_path / "exported",
            f"to start from them, name a configuration file and add pretrained={tmp_path}/exported",
        ),
        (tmp_path / "mine", f"name a configuration file of {tmp_path / 'mine'}/ (one.yaml), or a run folder to go on"),
    ):
        assert call(train, named) == 2
        assert message in capsys.readouterr().err
    assert not fitted


def test_the_resolved_configuration_is_printed_and_can_be_run(
    fitted: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    assert call(train, tmp_path / "tiny.yaml", "--print-config", "optim.lr=0.5", "name=${stage.name} 1") == 0
    assert not fitted
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load(tmp_path / "printed.yaml") == load(tmp_path / "tiny.yaml", ["optim.lr=0.5", "name=${stage.name} 1"])
    assert load(tmp_path / "printed.yaml").name == "t2i_pretrain 1"
