"""Folders that exist whole or not at all, and that say what they were made from."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class FolderError(ValueError):
    """A folder holds something else than what is to be written there."""


def write_origin(path: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration that a folder was made from."""
    path.write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")


def holds(folder: Path, origin: str, config: Mapping[str, Any]) -> bool:
    """Whether ``folder`` was made from this very ``config``; False when it is empty or does not exist.

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
        content = json.loads(origin.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{origin} cannot be read ({error}); delete {origin.parent} to begin anew") from error
    if not isinstance(content, dict):
        raise FolderError(f"{origin} holds no object; delete {origin.parent} to begin anew")
    return content


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` (empty or not there yet) that takes its place when the block succeeds."""
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder`` (a hidden file beside it); whoever else wants it waits.

    What a killed holder left behind of `new_folder` is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.parent.glob(f".{folder.name}.partial-*"):
            shutil.rmtree(stale)
        yield
