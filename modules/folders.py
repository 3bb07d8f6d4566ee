"""Walks folders that others filled."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

log = logging.getLogger(__name__)


def files_below(folder: Path, left_out: Counter[str] | None = None) -> list[Path]:
    """All files in and below ``folder``, sorted by path.

    Links to folders are followed. Each real folder is entered once, so circles end. Files that macOS adds to archives
    (``._name``, ``__MACOSX``) are left out; a warning says how many, and ``left_out`` counts them.

    Raises:
        OSError: a folder cannot be read.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    starts = [folder]
    for start in starts:  # grows: links wait until the real folders are entered, so those keep their own paths
        for place, folders, names in os.walk(start, onerror=_fail):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            folders.sort()
            starts += [path for name in folders if (path := Path(place, name)).is_symlink()]
            found += [Path(place, name) for name in names]
    kept = without_macos(found, folder)
    if left_out is not None and len(kept) < len(found):
        left_out["macos_files_left_out"] += len(found) - len(kept)
    return sorted(kept)


def without_macos(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Those of ``paths``, files below ``folder``, that do not only hold what macOS stores about another file."""
    inner = [path.relative_to(folder) for path in paths]
    kept = [path for path, name in zip(paths, inner, strict=True) if not _is_macos(name)]
    if len(kept) < len(paths):
        _warn(folder, len(paths) - len(kept))
    return kept


def _is_macos(path: Path) -> bool:
    return path.name.startswith("._") or "__MACOSX" in path.parts


@cache
def _warn(folder: Path, count: int) -> None:
    """Say it once in a process, however often the folder is listed."""
    log.warning("%s: %d files that macOS added (._*, __MACOSX) are left out", folder, count)


def _fail(error: OSError) -> NoReturn:
    raise error
