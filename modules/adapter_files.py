"""Task adapters as peft adapter folders: ``adapter_config.json`` and ``adapter_model.safetensors``.

Only the file format is from peft. At run time, our own layer computes both adapters
(docs/decisions/0003-own-lora-layer.md).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from modules.omnimamba.config import TASKS, Task
from modules.omnimamba.model import OmniMamba
from modules.reading import read_json
from modules.weight_files import read_weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGET = "in_proj"
_PREFIX = "base_model.model."


class _Stored(TypedDict):
    r: Annotated[int, Ge(1)]
    lora_alpha: float


@dataclass(frozen=True, kw_only=True)
class AdapterFolders:
    """Folders of task adapters in peft's format, as written by ``pipelines.export --forms adapters``."""

    mmu: str = ""
    """Folder of the MMU adapters; empty: none."""
    t2i: str = ""
    """Folder of the T2I adapters; empty: none."""

    def named(self) -> dict[Task, Path]:
        """The folders that are set, by task."""
        return {task: Path(path) for task in TASKS if (path := getattr(self, task))}


def load_adapters(model: OmniMamba, folders: AdapterFolders) -> list[str]:
    """Load the adapters in ``folders``; see `load_adapter`. Returns a line about each."""
    for task, folder in folders.named().items():
        load_adapter(model, task, folder)
    return [f"the {task} adapters from {folder}" for task, folder in folders.named().items()]


def save_adapter(model: OmniMamba, task: Task, folder: Path) -> None:
    """Write ``task``'s adapter so that peft can load it onto a model with ``lora: none``.

    Raises:
        ValueError: the model has no adapters.
        FileExistsError: the folder already holds an adapter.
    """
    from peft import LoraConfig

    if model.config.lora == "none":
        raise ValueError("model.lora=none has no adapters to save")
    if (folder / WEIGHTS).exists():
        raise FileExistsError(f"{folder / WEIGHTS} exists; choose another folder, nothing is overwritten")
    lora = model.config.adapters
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=[TARGET])
    folder.mkdir(parents=True, exist_ok=True)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(
        {_PREFIX + name.replace(f".{task}.", "."): value.contiguous() for name, value in _own(model, task).items()},
        folder / WEIGHTS,
    )


@torch.no_grad()
def load_adapter(model: OmniMamba, task: Task, folder: Path) -> None:
    """Load a peft adapter as ``task``'s adapter.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the rank, scale or set of layers differs from the model's.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; an adapter folder holds {CONFIG} and {WEIGHTS}")
    stored = read_json(folder / CONFIG, _Stored, "adapter configuration")
    lora = model.config.adapters
    if (stored["r"], stored["lora_alpha"]) != (lora.rank, lora.alpha):
        raise ValueError(
            f"adapter {folder} has r={stored['r']} and lora_alpha={stored['lora_alpha']}, the model has "
            f"model.adapters.rank={lora.rank} and alpha={lora.alpha}; set the model's to the adapter's"
        )
    own = _own(model, task)
    given = {name.removeprefix(_PREFIX): value for name, value in read_weights(folder / WEIGHTS).items()}
    wanted = {name.replace(f".{task}.", "."): parameter for name, parameter in own.items()}
    if given.keys() != wanted.keys():
        odd = sorted(given.keys() ^ wanted.keys())
        raise ValueError(f"adapter {folder} and the model differ in {len(odd)} layers, for example {odd[0]}")
    for name, parameter in wanted.items():
        if given[name].shape != parameter.shape:
            raise ValueError(f"{name} is {tuple(given[name].shape)} in {folder}, {tuple(parameter.shape)} in the model")
        parameter.copy_(given[name])


def _own(model: OmniMamba, task: Task) -> dict[str, Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if f"lora_A.{task}." in name or f"lora_B.{task}." in name
    }
