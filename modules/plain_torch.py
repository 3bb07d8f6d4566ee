"""Reads torch files of plain tensors and plain data. Whatever else a file holds is refused, and nothing is run."""

import errno
import re
import zipfile
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge
from typing_extensions import TypedDict

from modules.reading import checked


class NotPlainError(ValueError):
    """A torch file is damaged, or holds more than plain tensors and data; the message is the reason alone."""


def load_plain(file: Path, *, mapped: bool = True) -> Any:
    """The content of a torch file, on the CPU; with ``mapped``, tensors stay in the file until they are used.

    Raises:
        NotPlainError: it holds something else, or cannot be read.
        OSError: the system cannot read the file.
    """
    try:
        # files in the format of old torch versions cannot be memory-mapped
        mapped = mapped and zipfile.is_zipfile(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file makes the unpickler raise all kinds of errors
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # those two: a file that ends early
            raise
        raise NotPlainError(_reason(error)) from error


class _Trained(TypedDict):
    trained: list[str]


class _State(TypedDict, total=False):
    """What we read of a state; Lightning reads the rest."""

    global_step: Annotated[int, Ge(0)]
    state_dict: dict[str, Any]
    stage: _Trained
    run: dict[str, Any]


def read_training_state(file: Path, *, mapped: bool = True) -> dict[str, Any]:
    """The training state in a torch file; see `load_plain`.

    Raises:
        ValueError: as `load_plain`, or what we read of it has another type.
    """
    return cast(dict[str, Any], checked(load_plain(file, mapped=mapped), _State, "its state"))


def _reason(error: Exception) -> str:
    """Why torch refuses a file; its own words advise to run whatever the file holds."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds {found[1]}, and loading that could run any program"
    return "it is TorchScript, a program" if "TorchScript" in str(error) else "it is damaged, or of another kind"
