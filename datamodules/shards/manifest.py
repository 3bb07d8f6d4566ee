"""The manifest of a data set: its shards, where they are, and what identifies them.

``manifest.json`` is written last, so without it there is no data set. It is a path or a URL. The shards are in the
same folder: ``NAME-000000.tar`` and ``NAME-000000.idx.npz``.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datamodules.shards.fetch import is_url, read_bytes, shown, sibling

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedShardError(ValueError):
    """A shard differs from its manifest or index."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """The manifest's entry for one shard."""

    name: str
    n: int
    bytes: int
    sha256: str
    idx_sha256: str
    fields: list[str]

    def problems(self) -> list[str]:
        """Values that no shard can have."""
        found = []
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            found.append("name may hold only letters, digits, '-' and '_'")
        found += [
            f"{key} must be a whole number of at least 1, not {getattr(self, key)!r}"
            for key in ("n", "bytes")
            if type(getattr(self, key)) is not int or getattr(self, key) < 1
        ]
        found += [
            f"{key} must be 64 hexadecimal digits"
            for key in ("sha256", "idx_sha256")
            if not isinstance(getattr(self, key), str) or not _SHA256.fullmatch(getattr(self, key))
        ]
        if (
            not isinstance(self.fields, list)
            or not all(isinstance(field, str) for field in self.fields)
            or not self.fields
            or len(set(self.fields)) < len(self.fields)
        ):
            found.append("fields must be a list of different extensions")
        return found


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest that has been read and checked."""

    place: str
    """Path or URL it was read from."""
    entries: list[ShardEntry]
    meta: dict[str, Any]

    @classmethod
    def read(cls, place: str | Path) -> "Manifest":
        """Read and check the manifest at ``place``.

        Raises:
            FileNotFoundError: it does not exist.
            FetchError: it cannot be fetched from its server.
            ValueError: it is not a manifest, or has another format version.
            DamagedShardError: it was altered.
        """
        place = str(place)
        content = _content(place)
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"manifest {shown(place)} has format_version {version!r}; this code reads {FORMAT_VERSION}"
            )
        entries = _entries(content, place)
        meta = content.get("meta")
        if not isinstance(meta, dict):
            raise DamagedShardError(f"manifest {shown(place)}: meta must be an object; it was altered. Build it again")
        return cls(place=place, entries=entries, meta=meta)

    @property
    def fields(self) -> list[str]:
        """Extensions of every sample."""
        return self.entries[0].fields

    @property
    def fingerprint(self) -> str:
        """What identifies the content."""
        return fingerprint_of(self.entries)

    def tar(self, entry: ShardEntry) -> str:
        """Path or URL of a shard."""
        return sibling(self.place, f"{entry.name}.tar")

    def index(self, entry: ShardEntry) -> str:
        """Path or URL of its index."""
        return sibling(self.place, f"{entry.name}.idx.npz")


def _content(place: str) -> dict[str, Any]:
    try:
        text = read_bytes(place) if is_url(place) else Path(place).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"manifest {shown(place)} does not exist, so there is no complete data set; "
            "make it with `python -m pipelines.prepare`"
        ) from error
    except IsADirectoryError as error:
        raise ValueError(f"manifest {place} is a folder; name the {MANIFEST} in it") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"manifest {shown(place)} is not JSON ({type(error).__name__}: {error}); copy or build it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"manifest {shown(place)} must hold an object, not {type(content).__name__}; "
            f"name the {MANIFEST} of a data set"
        )
    return content


def _entries(content: dict[str, Any], place: str) -> list[ShardEntry]:
    shards = content.get("shards")
    if not isinstance(shards, list) or not shards:
        raise DamagedShardError(f"manifest {shown(place)} lists no shards; copy or build it again")
    entries = []
    wanted = [field.name for field in fields(ShardEntry)]
    for number, shard in enumerate(shards):
        if not isinstance(shard, dict) or (missing := [key for key in wanted if key not in shard]):
            lacks = f"is missing {', '.join(missing)}" if isinstance(shard, dict) else "is not an object"
            raise DamagedShardError(f"manifest {shown(place)}: shard {number} {lacks}; copy or build it again")
        entry = ShardEntry(**{key: shard[key] for key in wanted})
        if problems := entry.problems():
            raise DamagedShardError(
                f"manifest {shown(place)}: shard {number}: {'; '.join(problems)}; copy or build it again"
            )
        entries.append(entry)
    if len({entry.name for entry in entries}) < len(entries):
        raise DamagedShardError(f"manifest {shown(place)} names a shard twice; build it again")
    if any(sorted(entry.fields) != sorted(entries[0].fields) for entry in entries):
        raise DamagedShardError(f"manifest {shown(place)}: its shards hold different fields; build it again")
    if content.get("fingerprint") != fingerprint_of(entries) or content.get("total") != sum(r.n for r in entries):
        raise DamagedShardError(
            f"manifest {shown(place)}: total or fingerprint do not match its shards; it was altered. Build it again"
        )
    return entries


def tar_path(folder: Path, shard: str) -> Path:
    """Path of a shard's tar file."""
    return folder / f"{shard}.tar"


def index_path(folder: Path, shard: str) -> Path:
    """Path of a shard's index."""
    return folder / f"{shard}.idx.npz"


def fingerprint_of(entries: Iterable[ShardEntry]) -> str:
    """What identifies the content of a data set: it changes with any byte of any shard."""
    return hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()
