"""The four things that name trained weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.checkpoints import CheckpointError, find_checkpoint, model_weights, read_state
from modules.published import PublishedWeights, to_published
from pipelines.run import trained
from pipelines.run.config import ConfigError
from pipelines.run.trained import load_trained, trained_config


def test_a_trained_model_comes_back_as_it_was_saved(run_folder: Path) -> None:
    found = load_trained(run_folder)
    assert (found.step, found.folder, found.config.folder) == (20, run_folder, run_folder)
    assert not found.model.training
    assert found.vq is not None
    stored = torch.load(run_folder / "checkpoints" / "step-000000020" / "state.ckpt", weights_only=True)["state_dict"]
    weights = found.model.state_dict()
    assert {f"model.{name}" for name in weights} == set(stored)
    assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in weights.items())


def test_overrides_reach_a_trained_model(run_folder: Path) -> None:
    assert load_trained(run_folder, ["model.vq=''", "evaluation.batch_size=3"]).config.evaluation.batch_size == 3
    with pytest.raises(ConfigError, match="Did you mean: 'batch_size'"):
        load_trained(run_folder, ["evaluation.batchsize=3"])


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_trained_model_is_computed_by_the_kernels_of_its_training(
    run_folder: Path, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool]()
    monkeypatch.setattr(trained, "check_hardware", lambda _, *, deterministic: asked.append(deterministic))
    load_trained(run_folder, [f"trainer.deterministic={deterministic}"])
    assert asked == [deterministic]


def test_overrides_that_change_the_model_are_refused(run_folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"step-000000020 does not fit the model: backbone\.layers\.1\..* is missing"
    ):
        load_trained(run_folder, ["model.n_layer=2"])


def test_a_folder_that_cannot_be_loaded_says_why(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_trained(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} is not a run folder: it has no config.yaml" in str(error.value)
    (run_folder / "checkpoints" / "step-000000020" / "state.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state\.ckpt has 0 bytes"):
        load_trained(run_folder)
    shutil.rmtree(run_folder / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_trained(run_folder)


def test_one_checkpoint_is_its_run_at_that_step(run_folder: Path) -> None:
    checkpoint = run_folder / "checkpoints" / "step-000000020"
    trained = load_trained(checkpoint)
    assert (trained.step, trained.folder) == (20, run_folder)
    (checkpoint / "state.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state\.ckpt has 0 bytes"):
        load_trained(checkpoint)


def test_published_weights_are_asked_by_way_of_a_configuration(run_folder: Path, tmp_path: Path) -> None:
    language = model_weights(read_state(find_checkpoint(run_folder, pytest.fail)))
    weights = to_published(PublishedWeights(language))
    save_file({name: value.clone() for name, value in weights.items()}, tmp_path / "omnimamba.safetensors")
    words = [f"pretrained={tmp_path / 'omnimamba.safetensors'}", f"run.dir={tmp_path / 'published'}"]
    trained = load_trained(run_folder / "config.yaml", words)
    assert (trained.step, trained.folder) == (0, tmp_path / "published")
    assert all(torch.equal(value, language[name]) for name, value in trained.model.state_dict().items())
    with pytest.raises(ConfigError, match=r"config\.yaml is a configuration without weights; name a run folder"):
        trained_config(run_folder / "config.yaml")
