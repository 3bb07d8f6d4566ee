"""Reads weight files of any origin: safetensors, alone or in pieces with an index, and torch's own format."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modules.omnimamba.weight_names import shortened

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
IN_A_FOLDER = (SAFETENSORS, INDEX, "pytorch_model.bin")
"""The file names looked for in a folder, in this order."""
WRAPPERS = ("model", "state_dict", "module")
"""Keys under which a torch file may hold its weights, next to other data."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the weight file in a downloaded folder, by name and on the CPU.

    Only plain tensors and data are unpickled from a torch file.

    Raises:
        FileNotFoundError: there is no such file, or no weight file in the folder.
        ValueError: the file is damaged, is not a mapping from names to tensors, or holds non-finite numbers.
    """
    file = _file_of(path)
    if file.name == INDEX:
        weights = _pieces(file)
    else:
        weights = _safetensors(file) if file.suffix == ".safetensors" else _torch_file(file)
    if odd := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{file} holds non-finite numbers in {shortened(odd)}: its training diverged or the file is "
            "damaged; fetch it again, or name other weights"
        )
    return weights


def weight_files(path: Path) -> list[Path]:
    """The files that `read_weights` reads.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: an index cannot be read.
    """
    file = _file_of(path)
    return [file, *_listed(file)] if file.name == INDEX else [file]


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; name a weight file, or a folder that holds one")
    for name in IN_A_FOLDER:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"folder {path} holds no weights; it needs one of {', '.join(IN_A_FOLDER)}")


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(str(file))
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}; fetch it again") from error
    return weights


def _index(file: Path) -> dict[str, str]:
    """Tensor name to the piece that holds it."""
    try:
        places = json.loads(file.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a safetensors index: it has no readable weight_map") from error
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{file} is not a safetensors index: its weight_map must map each name to a file")
    return places


def _listed(index: Path) -> list[Path]:
    """The pieces, in order; all of them exist."""
    pieces = [index.parent / name for name in sorted(set(_index(index).values()))]
    for piece in pieces:
        if not piece.is_file():
            raise FileNotFoundError(f"{piece} is missing, but {index.name} lists it; fetch it too")
    return pieces


def _pieces(index: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for piece in _listed(index):
        weights |= _safetensors(piece)
    if odd := sorted(_index(index).keys() ^ weights.keys()):
        raise ValueError(f"{index} and its pieces differ in {len(odd)} names, for example {odd[0]}; fetch them again")
    return weights


def _torch_file(file: Path) -> dict[str, Tensor]:
    try:
        # files in the format of old torch versions cannot be memory-mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{file} is not a torch file of plain tensors: {(str(error) or repr(error)).splitlines()[0]}. "
            "Fetch it again, or convert it to safetensors"
        ) from error
    for found in (content, *(content.get(key) for key in WRAPPERS if isinstance(content, Mapping))):
        if _is_weights(found):
            return dict(found)
    raise ValueError(
        f"{file} does not map names to tensors, at its top level or under {', '.join(WRAPPERS)}; save it that way"
    )


def _is_weights(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )
