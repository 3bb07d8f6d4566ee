"""Reads weight files of any origin: safetensors and torch's own format, alone or in pieces with an index."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from modules.omnimamba.weight_names import shortened
from modules.plain_torch import NotPlainError, load_plain
from modules.reading import read_json, require_file

SAFETENSORS, TORCH, INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"
IN_A_FOLDER = (SAFETENSORS, SAFETENSORS + INDEX, TORCH, TORCH + INDEX)
"""The file names looked for in a folder, in this order."""
WRAPPERS = ("model", "state_dict", "module")
"""Keys under which a torch file may hold its weights, next to other data."""
_QUANTISED = re.compile(r"^F[468]|float[48]_|u?int[48]$|^[IU][48]$")


class _Index(TypedDict):
    weight_map: dict[str, str]
    """Tensor name to the piece that holds it."""


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file, or of the weight file in a downloaded folder, by name and on the CPU.

    With ``prefix``, only those whose names begin with it. Only plain tensors and data are unpickled from a torch file.

    Raises:
        FileNotFoundError: there is no such file, or no weight file in the folder.
        ValueError: the file is damaged, a pointer of git-lfs or not a mapping from names to tensors, or holds quantised
            or non-finite numbers.
    """
    file = _file_of(path)
    weights = _pieces(file, prefix) if file.name.endswith(INDEX) else _tensors(file, prefix)
    refuse_quantised(file, {name: value.dtype for name, value in weights.items()})
    if odd := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{file} holds non-finite numbers in {shortened(odd)}: its training diverged or the file is "
            "damaged; fetch it again, or name other weights"
        )
    return weights


def refuse_quantised(file: Path, kinds: Mapping[str, Any]) -> None:
    """Raise ValueError if tensors of ``file`` have few bits; ``kinds`` are torch's or safetensors' types by name."""
    if odd := [f"{name} ({kind})" for name, kind in kinds.items() if _QUANTISED.search(str(kind))]:
        raise ValueError(
            f"{file} holds quantised numbers in {shortened(odd)}: without their scales they mean nothing here; "
            "name the weights in bfloat16 or float32"
        )


def weight_files(path: Path) -> list[Path]:
    """The files that `read_weights` reads.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: an index cannot be read.
    """
    file = _file_of(path)
    return [file, *_listed(file, _index(file).values())] if file.name.endswith(INDEX) else [file]


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; name a weight file, or a folder that holds one")
    for name in IN_A_FOLDER:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"folder {path} holds no weights; it needs one of {', '.join(IN_A_FOLDER)}")


def _tensors(file: Path, prefix: str) -> dict[str, Tensor]:
    require_file(file, "weight file")
    if file.suffix == ".safetensors":
        return _safetensors(file, prefix)
    return {name: value for name, value in _torch_file(file).items() if name.startswith(prefix)}


def _safetensors(file: Path, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(str(file), framework="pt") as content:
            names = [name for name in content.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights: dict[str, Tensor] = {name: content.get_tensor(name) for name in names}
    except (SafetensorError, LookupError, AttributeError) as error:  # the last two: a type that torch does not have
        raise ValueError(f"{file} is not a readable safetensors file: {error}; fetch it again") from error
    return weights


def _index(file: Path) -> dict[str, str]:
    """Tensor name to the piece that holds it."""
    places = read_json(file, _Index, "index of weights")["weight_map"]
    if odd := [place for place in places.values() if Path(place).name != place]:
        raise ValueError(f"index of weights {file}: weight_map names {odd[0]!r}; pieces must be in the same folder")
    return places


def _listed(index: Path, names: Iterable[str]) -> list[Path]:
    """The pieces, in order; all of them exist."""
    pieces = [index.parent / name for name in sorted(set(names))]
    for piece in pieces:
        if not piece.is_file():
            raise FileNotFoundError(f"{piece} is missing, but {index.name} lists it; fetch it too")
    return pieces


def _pieces(index: Path, prefix: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    places = {name: place for name, place in _index(index).items() if name.startswith(prefix)}
    for piece in _listed(index, places.values()):
        weights |= _tensors(piece, prefix)
    if odd := sorted(places.keys() ^ weights.keys()):
        raise ValueError(f"{index} and its pieces differ in {len(odd)} names, for example {odd[0]}; fetch them again")
    return weights


def _torch_file(file: Path) -> dict[str, Tensor]:
    try:
        content = load_plain(file)
    except NotPlainError as error:
        raise ValueError(
            f"{file} is not a torch file of plain tensors: {error}. Fetch it again, or convert it to safetensors"
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
