"""Files of weights as others write them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.weight_files import read_weights, weight_files

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def assert_read(path: Path) -> None:
    found = read_weights(path)
    assert found.keys() == WEIGHTS.keys()
    assert all(
        torch.equal(value, WEIGHTS[name]) and value.dtype == WEIGHTS[name].dtype for name, value in found.items()
    )


def in_pieces(folder: Path) -> None:
    places = {name: f"model-{number}-of-2.safetensors" for number, name in enumerate(WEIGHTS, 1)}
    for name, file in places.items():
        save_file({name: WEIGHTS[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_safetensors_alone_and_in_a_folder(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert_read(tmp_path / "model.safetensors")
    assert_read(tmp_path)
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_safetensors_in_pieces(tmp_path: Path) -> None:
    in_pieces(tmp_path)
    assert_read(tmp_path)
    assert [file.name for file in weight_files(tmp_path)] == [
        "model.safetensors.index.json",
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
    ]
    save_file({"c": torch.ones(1)}, tmp_path / "model-1-of-2.safetensors")
    with pytest.raises(ValueError, match=r"differ in 2 names, for example a\.weight; fetch them again"):
        read_weights(tmp_path)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    for read in (read_weights, weight_files):
        with pytest.raises(
            FileNotFoundError, match=r"model-2-of-2\.safetensors is missing, but model\.safetensors\.ind"
        ):
            read(tmp_path)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "module"])
def test_torch_files_alone_and_beside_other_things(tmp_path: Path, wrapper: str | None) -> None:
    torch.save({wrapper: WEIGHTS, "epoch": 3} if wrapper else WEIGHTS, tmp_path / "pytorch_model.bin")
    assert_read(tmp_path)


def test_torch_files_in_the_format_of_old(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_read(tmp_path)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_torch_files_cut_short_are_refused(tmp_path: Path, kept: int, old: bool) -> None:
    file = tmp_path / "cut.pt"
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=not old)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.pt is not a torch file of plain tensors: .+\. Fetch it again"):
        read_weights(file)


@pytest.mark.parametrize("odd", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, odd: float) -> None:
    save_file(WEIGHTS | {"b": torch.tensor([1, odd], dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors holds non-finite numbers in b: its "):
        read_weights(tmp_path)


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist; name a weight file"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match=r"no weights; it needs one of model\.safetensors, .*model\.bin"):
        read_weights(tmp_path)
    (tmp_path / "bad.pt").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"bad\.pt is not a torch file of plain tensors: .*convert it to safetensors"):
        read_weights(tmp_path / "bad.pt")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"module\.pt is not a torch file of plain tensors"):
        read_weights(tmp_path / "module.pt")
    torch.save({"weights": {}, "epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt does not map names to tensors, at its top level or under"):
        read_weights(tmp_path / "other.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a readable safetensors file.*; fetch it again"):
        read_weights(tmp_path / "bad.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a safetensors index: it has no readable"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(ValueError, match=r"is not a safetensors index: its weight_map must map each name"):
        read_weights(tmp_path)
