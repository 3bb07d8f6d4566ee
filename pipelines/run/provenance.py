"""provenance.json: what is known of every attempt at a run. Written by the run folder, read by it and by the report."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from modules.files import code_version
from modules.reading import read_json
from modules.run_files import PROVENANCE

PACKAGES = ("torch", "lightning", "mamba-ssm", "causal-conv1d", "deepspeed", "wandb", "webdataset", "datasets", "peft",
            "omegaconf", "numpy", "pillow", "tokenizers", "safetensors")  # fmt: skip
_Count = Annotated[int, Ge(0), Le(2**31)]
_Seconds = Annotated[float, Ge(0), Le(1e11)]
"""Since 1970; the year 5138 at most, which the report can still show."""


class Attempt(TypedDict, total=False):
    """One attempt; what it has beyond these keys is only shown."""

    attempt: _Count
    time: _Seconds
    resumed: str | None
    data: dict[str, str]
    weights: dict[str, str]
    threads: _Count
    cpu_capability: str


class Provenance(TypedDict):
    """The content of the file."""

    wandb_run_id: NotRequired[str]
    attempts: list[Attempt]


def read_provenance(folder: Path) -> Provenance | None:
    """The provenance of the run in ``folder``; None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        return read_json(path, Provenance, "file")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it, or move it away to continue without this run's history"
        ) from None


def provenance() -> dict[str, Any]:
    """Code, packages and machine of this attempt."""
    return {
        "code": code_version(),
        "packages": _versions(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
