"""The two files that follow a model: known by content, kept if small."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.checkpoints import CheckpointError
from modules.model_files import KEY, SMALL, ModelFiles, carried_vq, keep, kept
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.llamagen import PUBLISHED_PREFIX, LlamaGenVQ
from modules.omnimamba.llamagen_layers import LlamaGenConfig

MODEL = ModelConfig(tokenizer="a/tokenizer.json", vq="a/vq.pt")
MINE = ModelFiles(tokenizer="1" * 64, vq="2" * 64)


@pytest.mark.parametrize(
    ("key", "title", "harm"),
    [("tokenizer", "text tokenizer", "ids would stand for other words"), ("vq", "VQ tokenizer", "other pictures")],
)
def test_other_content_is_refused_with_both_hashes(key: str, title: str, harm: str) -> None:
    other = replace(MINE, **{key: "3" * 64})
    with pytest.raises(CheckpointError) as error:
        other.agreed(MINE, "runs/a", MODEL, pytest.fail)
    message = str(error.value)
    assert message.startswith(f"model.{key}={getattr(MODEL, key)} is not the {title} of runs/a: its hash is {'3' * 64}")
    assert f"that one's is {getattr(MINE, key)}, and " in message
    assert harm in message
    assert f"name one of the same content with model.{key}=" in message


def test_what_is_the_same_or_not_there_agrees() -> None:
    assert MINE.agreed(MINE, "runs/a", MODEL, pytest.fail) == MINE
    assert ModelFiles(tokenizer=MINE.tokenizer).agreed(MINE, "runs/a", MODEL, pytest.fail) == MINE


def test_what_was_saved_without_hashes_is_taken_with_one_warning() -> None:
    said: list[str] = []
    assert MINE.agreed(ModelFiles.stored({}, "runs/a"), "runs/a", MODEL, said.append) == MINE
    [warning] = said
    assert "runs/a was saved without the hash of its text tokenizer and VQ tokenizer" in warning
    assert "so model.tokenizer=a/tokenizer.json and model.vq=a/vq.pt cannot be checked" in warning


def test_hashes_are_stored_as_plain_data_and_checked_when_read() -> None:
    assert ModelFiles.stored({KEY: MINE.as_dict()}, "x") == MINE
    assert ModelFiles(tokenizer="1").as_dict() == {"tokenizer": "1"}
    with pytest.raises(ValueError, match=r"export\.json, model_files: tokenizer is 5, expected a text"):
        ModelFiles.stored({KEY: {"tokenizer": 5}}, "export.json")


def files(folder: Path, name: str, size: int) -> ModelConfig:
    """A model with a VQ tokenizer of ``size`` bytes, which take no room."""
    (folder / "from").mkdir(exist_ok=True)
    (folder / "from" / "words.json").write_text("{}")
    with (folder / "from" / name).open("wb") as file:
        file.truncate(size)
    return ModelConfig(tokenizer=str(folder / "from" / "words.json"), vq=str(folder / "from" / name))


def test_the_tokenizer_and_a_small_vq_are_kept(tmp_path: Path) -> None:
    model, run = files(tmp_path, "any.safetensors", SMALL), tmp_path / "run"
    run.mkdir()
    assert kept(run) == {}
    keep(run, model)
    assert kept(run) == {"tokenizer": run / "tokenizer.json", "vq": run / "vq.safetensors"}
    keep(run, replace(model, tokenizer=str(run / "tokenizer.json"), vq=str(run / "vq.safetensors")))  # itself
    assert (run / "vq.safetensors").stat().st_size == SMALL
    keep(run, files(tmp_path, "any.bin", 5))  # of another format: the earlier copy is not it
    assert sorted(path.name for path in run.iterdir()) == ["tokenizer.json", "vq.pt"]


def test_a_large_vq_is_not_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    keep(run, files(tmp_path, "small.pt", 5))
    keep(run, files(tmp_path, "large.pt", SMALL + 1))
    assert kept(run) == {"tokenizer": run / "tokenizer.json"}


def test_a_vq_may_be_named_by_its_folder(tmp_path: Path) -> None:
    model, run = files(tmp_path, "model.safetensors", 5), tmp_path / "run"
    run.mkdir()
    keep(run, replace(model, vq=str(tmp_path / "from")))
    assert kept(run)["vq"].stat().st_size == 5


def test_only_the_vq_is_read_of_a_checkpoint_that_carries_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = load_file(Path(__file__).parents[1] / "reference" / "vq_weights.safetensors")
    sizes = LlamaGenConfig(
        image_size=64, channels=32, channel_multipliers=(1, 1, 1, 1, 2), z_channels=64, codebook_size=64, code_dim=8
    )
    whole = LlamaGenVQ.from_weights
    monkeypatch.setattr(LlamaGenVQ, "from_weights", lambda origin, weights: whole(origin, weights, sizes))
    carried = {PUBLISHED_PREFIX + name: value for name, value in recorded.items()}
    beside = {"llm_backbone.mamba.x": torch.full((2,), torch.nan)}  # would be refused if it were read
    save_file(carried | beside, tmp_path / "all.safetensors")
    torch.save({"model": carried | beside}, tmp_path / "all.pt")
    for name in ("all.safetensors", "all.pt"):
        found = carried_vq(tmp_path / name)
        assert found is not None
        assert found.fingerprint == whole("recorded", recorded, sizes)[0].fingerprint
    save_file({"backbone.x": torch.zeros(2)}, tmp_path / "none.safetensors")
    assert carried_vq(tmp_path / "none.safetensors") is None
