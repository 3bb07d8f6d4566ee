"""What the sources share: settings, and checked pictures and texts."""

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.images import Picture

_MACHINE_FAULTS = frozenset(
    (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN)
)
"""Errors of the machine, not of a file: the build must stop and resume later, not leave samples out."""
ON_WHITE = "transparency_on_white"
"""Counts the pictures that were transparent somewhere."""
_SHOWN = 120
"""Characters of a name or text that a reason shows."""


class BadEntryError(ValueError):
    """An entry cannot become a sample; the message is the reason, with its kind before the first colon."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the shards go and how they are built; every source has these settings."""

    out: str
    """Folder for the shards."""
    name: str
    """Prefix of the names of shards and keys."""
    per_shard: int
    """Entries per shard."""
    processes: int = 0
    """Worker processes; 0 uses all cores."""
    val_share: float = 0.0
    """Share of the pictures to keep apart for validation: their samples go to ``out``/val."""
    licence: str = ""
    """Terms of the pictures and texts, for the manifest."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = [f"per_shard={self.per_shard} must be at least 1"] if self.per_shard < 1 else []
        if self.processes < 0:
            found.append(f"processes={self.processes} must be at least 0; 0 uses all cores")
        if not 0 <= self.val_share < 1:
            found.append(f"val_share={self.val_share} must lie in [0, 1); 0.02 keeps a fiftieth apart")
        return found


def processes_of(config: SourceConfig) -> int:
    """Number of processes that ``config`` asks for."""
    # the cores this process may use: a job often gets fewer than the machine has
    return config.processes or len(os.sched_getaffinity(0))


def read_file(folder: Path, name: str) -> bytes:
    """Content of the file ``name`` in ``folder`` or below.

    Raises:
        BadEntryError: there is no such file, it cannot be read, or the name leads out of the folder.
        OSError: the machine failed, not the file.
    """
    path = PurePath(name)
    # only the name is checked: symbolic links out of the folder are allowed
    if path.is_absolute() or ".." in path.parts:
        raise BadEntryError(f"image lies outside the image folder: {shown(name)}")
    try:
        if (folder / path).exists() and not (folder / path).is_file():
            raise BadEntryError(f"image is not a regular file: {shown(name)}")
        return (folder / path).read_bytes()
    except BadEntryError:
        raise
    except FileNotFoundError as error:
        raise BadEntryError(f"image does not exist: {shown(name)}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadEntryError(f"image cannot be read: {shown(name)} ({reason})") from error


def decoded(content: bytes, name: str) -> "Picture":
    """The picture in ``content``, fully decoded, upright, on white, in RGB.

    Raises:
        BadEntryError: it is empty, truncated, too large or not a picture at all.
    """
    # imported here because it imports torch
    from datamodules.images import read_picture

    if not content:
        raise BadEntryError(f"image is empty: {shown(name)}")
    try:
        return read_picture(content)
    except ValueError as error:
        raise BadEntryError(f"image does not decode: {shown(name)} ({shown(str(error))})") from error


def clean_text(value: Any, what: str) -> str:
    """``value``, if it is a text that can be stored; ``what`` names it in the reason.

    Raises:
        BadEntryError: it is not a string, or holds half of a surrogate pair, which no tokenizer accepts.
    """
    if not isinstance(value, str):
        raise BadEntryError(f"{what} is not a text: {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadEntryError(f"{what} is not valid Unicode: {error.reason}") from error
    return value


def clean_captions(values: Any) -> list[str]:
    """Captions from a text or a list of texts, with white space collapsed and empty ones left out.

    Raises:
        BadEntryError: something in it is not a text, or there are no captions.
    """
    given = values if isinstance(values, list | tuple) else [values]
    # some captions, COCO's among them, end in line breaks
    captions = [" ".join(clean_text(value, "caption").split()) for value in given]
    if not any(captions):
        raise BadEntryError("no captions")
    return [caption for caption in captions if caption]


def shown(text: str) -> str:
    """``text``, shortened to fit into a reason."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def as_json(content: dict[str, Any]) -> bytes:
    """The ``.json`` payload of a sample.

    Raises:
        BadEntryError: a text in it is not valid Unicode, so readers would refuse it.
    """
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadEntryError(f"text is not valid Unicode: {error.reason}") from error
    return json.dumps(content).encode()


def need_folder(path: Path, what: str) -> Path:
    """``path``, if it is a folder.

    Raises:
        FileNotFoundError: it is not.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{what} {path} is not a folder")
    return path
