"""Files of weights, whoever wrote them: safetensors, alone or in pieces with an index, and torch's own files."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
IN_A_FOLDER = (SAFETENSORS, INDEX, "pytorch_model.bin")
"""What a folder is searched for, in this order."""
WRAPPERS = ("model", "state_dict", "module")
"""Keys under which a torch file may hold its weights, beside other things."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the one that a downloaded folder holds, by name and on the CPU.

    Of a torch file nothing but plain tensors and data is unpickled.

    Raises:
        FileNotFoundError: there is no such file, or no file of weights in the folder.
        ValueError: the file is damaged, or no mapping from names to tensors.
    """
    file = _file_of(path)
    if file.name == INDEX:
        return _pieces(file)
    return _safetensors(file) if file.suffix == ".safetensors" else _torch_file(file)


def weight_files(path: Path) -> list[Path]:
    """The files that `read_weights` reads."""
    file = _file_of(path)
    return [file, *(file.parent / name for name in _index(file))] if file.name == INDEX else [file]


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; name a file of weights, or the folder that holds one")
    for name in IN_A_FOLDER:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"folder {path} holds no weights: none of {', '.join(IN_A_FOLDER)} is in it")


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(str(file))
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}; fetch it again") from error
    return weights


def _index(file: Path) -> list[str]:
    """Names of the pieces, in order."""
    try:
        places: dict[str, str] = json.loads(file.read_text())["weight_map"]
        return sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no index of safetensors pieces: it lacks a readable weight_map") from error


def _pieces(index: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name in _index(index):
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent / name} is missing, which {index.name} lists; fetch it too")
        weights |= _safetensors(index.parent / name)
    listed = json.loads(index.read_text())["weight_map"].keys()
    if odd := sorted(listed ^ weights.keys()):
        raise ValueError(f"{index} and its pieces differ in {len(odd)} names, for example {odd[0]}; fetch them again")
    return weights


def _torch_file(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{file} is not a torch file of plain tensors: {str(error).splitlines()[0]}. Convert it to safetensors"
        ) from error
    for found in (content, *(content.get(key) for key in WRAPPERS if isinstance(content, Mapping))):
        if _is_weights(found):
            return dict(found)
    raise ValueError(
        f"{file} does not map names to tensors, neither at its top nor under {', '.join(WRAPPERS)}; save it that way"
    )


def _is_weights(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )
