"""Files and folders that appear on disk complete and synced, or not at all, and their names."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

GIB = 2**30
PARTIAL = ".partial-"
"""Part of the name of every file and folder that is not complete yet."""


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_name(step: int) -> str:
    """Name of the folders that belong to an optimizer step, for example step-000000020."""
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step in a folder's name, or None if there is none."""
    number = name.removeprefix("step-")
    return int(number) if number != name and number.isascii() and number.isdecimal() else None


def step_folders(folder: Path) -> list[Path]:
    """The step folders in ``folder``, in order of their steps; empty if ``folder`` does not exist."""
    found = {step: path for path in folder.glob("step-*") if (step := step_of(path.name)) is not None}
    return [found[step] for step in sorted(found)]


@contextmanager
def new_path(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a path to write a file to. Once the block succeeds, the file is synced to disk and replaces ``path``.

    Until then it is in ``scratch`` (on the same file system), or in the folder of ``path``.
    """
    partial = _partial(path, scratch)
    try:
        yield partial
        move_into_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path, scratch: Path | None = None) -> Iterator[BinaryIO]:
    """Yield an open file that replaces ``path``; see `new_path`.

    Raises:
        OSError: the file cannot be written; the error names ``path``.
    """
    try:
        with new_path(path, scratch) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        if error.errno is None or (error.filename is not None and PARTIAL not in str(error.filename)):
            raise  # of another file, which the caller was reading
        # the error of a write does not name the file, or the partial one
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_file(path: Path, content: str | bytes, scratch: Path | None = None) -> None:
    """Write a complete file; see `new_file`. Creates its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, scratch) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, document: Any, scratch: Path | None = None) -> None:
    """Write a complete file of readable JSON; see `write_file`."""
    write_file(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n", scratch)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder. Once the block succeeds, it replaces ``folder``, which must be empty or missing."""
    partial = _partial(folder, None)
    partial.mkdir(parents=True)
    try:
        yield partial
        move_into_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(partial: Path, path: Path, *, over_folder: bool = False) -> None:
    """Rename a file or folder once all of it is synced to disk, so that a power loss leaves nothing half written.

    If ``path`` is a folder that is not empty, it is deleted first with ``over_folder``; otherwise that is an error.
    """
    for each in [*partial.rglob("*"), partial] if partial.is_dir() else [partial]:
        _sync(each)
    if over_folder and path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)
    _sync(path.parent)


def remove_partials(folder: Path, name: str = "") -> None:
    """Delete the partial files and folders that killed processes left in ``folder``: those of ``name``, or all.

    No process may be writing them.
    """
    for stale in folder.iterdir():
        if stale.name.startswith(f".{name}{PARTIAL}") if name else PARTIAL in stale.name:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)


def _partial(path: Path, scratch: Path | None) -> Path:
    # with host and thread: nodes share folders and may have equal process ids, and threads write at the same time
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    return (scratch or path.parent) / f".{path.name}{PARTIAL}{writer}"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@cache
def code_version() -> str:
    """The git commit of the code, with "+changes" if the working tree has any; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, encoding="utf-8", check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if dirty.strip() else "")


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """File name to sha256 (hex). If names repeat, each is given relative to the common folder."""
    paths = list(paths)
    root = Path(os.path.commonpath(paths)) if len({path.name for path in paths}) < len(paths) else None
    names = [path.relative_to(root).as_posix() if root else path.name for path in paths]
    return {name: _sha256(path, path.stat().st_mtime_ns) for name, path in zip(names, paths, strict=True)}


@cache
def _sha256(path: Path, modified: int) -> str:
    del modified  # only part of the cache key: a changed file is read again
    return sha256(path)
