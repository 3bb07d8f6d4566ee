"""Trained weights in forms that other programs read: published names, or adapters merged into the blocks.

An exported folder holds ``model.safetensors`` and, written last, ``export.json`` with its size and SHA-256.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Ge
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from modules.checkpoints import CheckpointError
from modules.files import sha256, write_json
from modules.omnimamba.adapters import TaskLoraLinear
from modules.omnimamba.config import Task
from modules.omnimamba.llamagen import LlamaGenVQ
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.vision import DinoSiglip
from modules.omnimamba.vq import ImageTokenizer
from modules.published import PublishedWeights, from_published, to_published
from modules.reading import read_json, require_file
from modules.run_files import EXPORT
from modules.transformers_files import language_weights
from modules.weight_files import SAFETENSORS

FORMAT_VERSION = 1


class _File(TypedDict):
    bytes: int
    sha256: str


class _Facts(TypedDict):
    files: dict[str, _File]
    step: Annotated[int, Ge(0)]
    merged: NotRequired[Task | None]
    model_files: NotRequired[dict[str, str]]


def all_weights(model: OmniMamba, vq: ImageTokenizer | None = None, *, encoders: bool = False) -> dict[str, Tensor]:
    """All weights under the published checkpoint's names; with ``encoders``, also the ViTs and the VQ tokenizer.

    Raises:
        ValueError: ``encoders`` is set, but this model's encoders are not of the published kinds.
    """
    parts = PublishedWeights(_own(model))
    if not encoders:
        return to_published(parts)
    if not isinstance(model.vision, DinoSiglip) or not isinstance(vq, LlamaGenVQ):
        raise ValueError(
            "encoders can only be exported if they are those of the published checkpoint, DINOv2, SigLIP and VQ-16; "
            "this run has "
            f"model.vision.kind={model.config.vision.kind} and VQ tokenizer {vq.name if vq else 'none'}. Leave them out"
        )
    return to_published(PublishedWeights(parts.language, vision=model.vision.published_weights(), vq=vq.state_dict()))


def merged(model: OmniMamba, task: Task) -> dict[str, Tensor]:
    """All weights under the published names, with ``task``'s adapters merged into the blocks: a model without adapters.

    Raises:
        ValueError: the model has no adapters.
    """
    if model.config.lora == "none":
        raise ValueError("model.lora=none has no adapters to fold in; export the model as it is")
    return to_published(PublishedWeights(_merged(model, task)))


def for_transformers(model: OmniMamba) -> dict[str, Tensor]:
    """The language model under transformers' names, with the adapters that answer questions merged in."""
    return language_weights(_merged(model, "mmu"))


def write(weights: Mapping[str, Tensor], folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``weights`` and ``facts`` (plain data) into the existing ``folder``.

    Raises:
        CheckpointError: see `save`.
    """
    save(weights, path := folder / SAFETENSORS)
    entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    content = {"format_version": FORMAT_VERSION, "files": {SAFETENSORS: entry}, **facts}
    write_json(folder / EXPORT, content)


def save(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, and read it back to check.

    Raises:
        CheckpointError: the file differs from ``weights``: the disk or its cache is faulty.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    save_file(plain, path, {"format": "pt"})  # transformers asks for the format
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        same = names == weights.keys() and all(torch.equal(file.get_tensor(n), weights[n].cpu()) for n in names)
    if not same:
        raise CheckpointError(f"{path} reads back differently from what was written; write it to another disk")


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts in a folder that `write` filled.

    Raises:
        CheckpointError: the folder is damaged.
    """
    try:
        facts: Any = read_json(folder / EXPORT, _Facts, "description")
        _ = facts["files"][SAFETENSORS]
        require_file(folder / SAFETENSORS, "exported weights")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"exported folder {folder} cannot be read ({error}); export it again") from error
    found: dict[str, Any] = facts
    return found


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Language model and projector under our names, and the facts, from a folder that `write` filled.

    Raises:
        CheckpointError: the folder is damaged.
    """
    path, facts = folder / SAFETENSORS, read_facts(folder)
    entry = facts["files"][SAFETENSORS]
    if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
        raise CheckpointError(f"{path} is missing or not what {EXPORT} says was written; export it again")
    with safe_open(str(path), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return from_published(weights).language, facts


def _merged(model: OmniMamba, task: Task) -> dict[str, Tensor]:
    """All weights under our names, with ``task``'s adapters, if there are any, merged into the blocks."""
    own = {name: value for name, value in _own(model).items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, TaskLoraLinear):
            own[f"{name}.weight"] = module.merged(task)
    return own


def _own(model: OmniMamba) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}
