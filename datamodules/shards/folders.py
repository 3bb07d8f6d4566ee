"""Folders that record what they were made from, and that one process makes while others wait."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules.files import remove_partials, write_file
from modules.locks import lock_of, locked
from modules.reading import read_json


class FolderError(ValueError):
    """A folder holds something other than what is to be written there."""


def write_origin(path: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration that a folder was made from."""
    write_file(path, json.dumps(dict(config), indent=2) + "\n")


def holds(folder: Path, origin: str, config: Mapping[str, Any]) -> bool:
    """Whether ``folder`` was made from exactly this ``config``; False if it is empty or does not exist.

    Raises:
        FolderError: it holds something else; the message names the keys that differ.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / origin).is_file():
        raise FolderError(
            f"{folder} is not empty and holds no {origin}, so it was not made here; choose another folder"
        )
    there = _read(folder / origin)
    here = json.loads(json.dumps(dict(config)))  # as it is read back: tuples become lists
    keys = sorted({*there, *here})
    differing = [key for key in keys if there.get(key) != here.get(key)]
    if differing:
        found = ", ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in differing)
        raise FolderError(
            f"{folder} was made from another configuration: {found}. "
            "Choose another folder, set the same values, or delete it"
        )
    return True


def _read(origin: Path) -> dict[str, Any]:
    try:
        return read_json(origin, dict[str, Any], "origin")
    except ValueError as error:
        raise FolderError(f"{origin} cannot be read ({error}); delete {origin.parent} to start over") from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder`` (a hidden file next to it); other processes wait for it.

    Unfinished folders of `new_folder`, left behind by a killed process, are removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(folder)):
        remove_partials(folder.parent, folder.name)
        yield
