"""The manifest of a data set: its shards, where they are, and what identifies them.

``manifest.json`` is written last, so without it there is no data set. It is a path or a URL. The shards are in the
same folder, or next to the file that a linked manifest points to: ``NAME-000000.tar`` and ``NAME-000000.idx.npz``.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MinLen
from pydantic import StringConstraints
from typing_extensions import TypedDict

from datamodules.shards.fetch import is_url, read_bytes, shown, sibling
from modules.reading import checked, parse_json, refuse_lfs_pointer

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
_Count = Annotated[int, Ge(1), Le(2**60)]
_Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class DamagedShardError(ValueError):
    """A shard differs from its manifest or index."""


class ShardRecord(TypedDict):
    """A `ShardEntry` as stored in JSON."""

    name: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]+$")]
    n: _Count
    bytes: _Count
    sha256: _Sha256
    idx_sha256: _Sha256
    fields: Annotated[list[str], MinLen(1)]


class _Content(TypedDict):
    shards: Annotated[list[ShardRecord], MinLen(1)]
    total: int
    fingerprint: str
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """The manifest's entry for one shard."""

    name: str
    n: int
    bytes: int
    sha256: str
    idx_sha256: str
    fields: list[str]

    @classmethod
    def of(cls, record: ShardRecord) -> "ShardEntry":
        """The entry of a checked record; its other keys are ignored."""
        known: dict[str, Any] = {key: value for key, value in record.items() if key in ShardRecord.__annotations__}
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest that has been read and checked."""

    place: str
    """Path or URL it was read from, or the target of that link: the shards are in the same folder."""
    entries: list[ShardEntry]
    meta: dict[str, Any]

    @classmethod
    def read(cls, place: str | Path) -> "Manifest":
        """Read and check the manifest at ``place``; a local folder means the one in it.

        Raises:
            FileNotFoundError: it does not exist.
            FetchError: it cannot be fetched from its server.
            ValueError: it is not a manifest, or has another format version.
            DamagedShardError: it was altered.
        """
        place = manifest_file(str(place))
        where = f"manifest {shown(place)}"
        text = _text(place)
        refuse_lfs_pointer(text, where)
        content = checked(parse_json(text, where), dict[str, Any], where)
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"{where} has format_version {version!r}; this code reads {FORMAT_VERSION}")
        try:
            manifest = checked(content, _Content, where)
        except ValueError as error:
            raise DamagedShardError(f"{error}; copy or build it again") from error
        entries = _entries(manifest, where)
        return cls(place=_shards_place(place, entries[0]), entries=entries, meta=manifest["meta"])

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


def manifest_file(place: str) -> str:
    """The manifest that ``place`` means: the one in it if it is a local folder, otherwise ``place`` itself."""
    return place if is_url(place) or not Path(place).is_dir() else str(Path(place, MANIFEST))


def _text(place: str) -> bytes:
    try:
        return read_bytes(place) if is_url(place) else Path(place).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"manifest {shown(place)} does not exist, so there is no complete data set; "
            "make it with `python -m pipelines.prepare`"
        ) from error


def _entries(manifest: _Content, where: str) -> list[ShardEntry]:
    entries = [ShardEntry.of(record) for record in manifest["shards"]]
    if len({entry.name for entry in entries}) < len(entries):
        raise DamagedShardError(f"{where} names a shard twice; build it again")
    if any(sorted(entry.fields) != sorted(set(entries[0].fields)) for entry in entries):
        raise DamagedShardError(f"{where}: its shards hold different fields, or one twice; build it again")
    if (manifest["fingerprint"], manifest["total"]) != (fingerprint_of(entries), sum(entry.n for entry in entries)):
        raise DamagedShardError(
            f"{where}: total or fingerprint do not match its shards; it was altered. Build it again"
        )
    return entries


def _shards_place(place: str, first: ShardEntry) -> str:
    """``place``, or the target of the link ``place`` if the shards are only there."""
    if is_url(place) or not Path(place).is_symlink() or tar_path(Path(place).parent, first.name).exists():
        return place
    target = Path(place).resolve()
    return str(target) if tar_path(target.parent, first.name).exists() else place


def tar_path(folder: Path, shard: str) -> Path:
    """Path of a shard's tar file."""
    return folder / f"{shard}.tar"


def index_path(folder: Path, shard: str) -> Path:
    """Path of a shard's index."""
    return folder / f"{shard}.idx.npz"


def fingerprint_of(entries: Iterable[ShardEntry]) -> str:
    """What identifies the content of a data set: it changes with any byte of any shard."""
    return hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()


def brace_pattern(shards: Sequence[str]) -> str:
    """The tar files of the sorted ``shards`` as webdataset reads them: ``name-{000000..000010}.tar``."""
    name = shards[0].rsplit("-", 1)[0]
    runs: list[list[str]] = []
    for number in (shard.rsplit("-", 1)[1] for shard in shards):
        if runs and int(number) == int(runs[-1][-1]) + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [run[0] if len(run) == 1 else f"{{{run[0]}..{run[-1]}}}" for run in runs]
    return f"{name}-{parts[0] if len(parts) == 1 else '{' + ','.join(parts) + '}'}.tar"
