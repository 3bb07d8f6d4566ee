"""Random access to webdataset tar shards, with every payload checked.

A data set is a folder with ``NAME-000000.tar`` and ``NAME-000000.idx.npz`` per shard and a ``manifest.json``. The
index holds one structured array ``index``, one row per sample: ``key`` and, per extension, ``EXT.offset``,
``EXT.size`` and ``EXT.crc32`` of the payload in the tar. Tar headers are never read, so damage to them does no harm.
"""

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.shards.fetch import Progress, Wanted, cached_path, fetch, fetch_all, is_url, shown
from datamodules.shards.manifest import DamagedShardError, Manifest, ShardEntry
from modules.reading import require_file

__all__ = ["DamagedShardError", "Index", "Sample", "ShardSet", "payload_fault", "read_index", "shard_files"]

_UNREADABLE = (OSError, ValueError, LookupError, EOFError, AttributeError, RuntimeError, MemoryError, struct.error,
               zlib.error, zipfile.BadZipFile)  # fmt: skip
"""What numpy and zipfile raise for a damaged file."""
_OPEN_SHARDS = 128
"""Files kept open at once, well below the usual limit of 1024."""

Sample = tuple[str, Mapping[str, bytes]]
"""Key, and payloads by extension."""
Index = dict[str, NDArray[Any]]
"""Column name to its values, one per sample."""


class ShardSet:
    """Random access to a data set that `build_shards` wrote.

    Files are opened when first read, and open files are not pickled. So data workers can unpickle or inherit the
    object.
    """

    def __init__(self, manifest: Manifest, cache: Path | None, paths: list[Path], index: Index) -> None:
        """Use `open` instead."""
        self.fingerprint = manifest.fingerprint
        self.meta = manifest.meta
        self.fields = manifest.fields
        self._manifest = manifest
        self._cache = cache
        self._paths = paths
        self._ends = np.cumsum([entry.n for entry in manifest.entries])
        self._index = index
        self._files: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def open(
        cls, manifest: str | Path, cache: str | Path | None = None, *, progress: Progress | None = None
    ) -> "ShardSet":
        """Read ``manifest``, a path or a URL, and the indexes next to it, and check every shard's size.

        With ``cache``, a local folder, missing shards and indexes are copied there first. ``progress`` is then called
        with the number of files copied and the number of all files.

        Raises:
            FileNotFoundError: the manifest, or a shard or index it names, is missing.
            FetchError: a file cannot be copied to ``cache``.
            ValueError: the manifest is unreadable, has another format version, or is a URL without ``cache``.
            DamagedShardError: a shard's size or an index differs from the manifest.
        """
        read = Manifest.read(manifest)
        folder = None if cache is None else Path(cache)
        if folder is not None:
            _copy_to_cache(read, folder, progress)
        parts, paths = [], []
        for entry, (tar, index) in zip(read.entries, shard_files(read, folder), strict=True):
            found = _existing(tar, read).stat().st_size
            if found != entry.bytes:
                require_file(tar, "shard")  # raises a better message for a git-lfs pointer
                raise DamagedShardError(
                    f"shard {tar} has {found} bytes, its manifest says {entry.bytes}; copy or build it again"
                )
            parts.append(read_index(_existing(index, read), entry))
            paths.append(tar)
        columns = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
        return cls(read, folder, paths, columns)

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._ends[-1])

    @property
    def keys(self) -> NDArray[np.bytes_]:
        """Keys of all samples, in order."""
        return self._index["key"]

    @property
    def starts(self) -> NDArray[np.int64]:
        """Index of each shard's first sample."""
        return self._ends - [entry.n for entry in self._manifest.entries]

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(entry.bytes for entry in self._manifest.entries)

    def sizes(self, field: str) -> NDArray[np.int64]:
        """Payload bytes of all samples, in order."""
        return self._index[f"{field}.size"]

    def key(self, i: int) -> str:
        """Key of sample ``i``.

        Raises:
            IndexError: there is no such sample.
        """
        self._check(i)
        return bytes(self._index["key"][i]).decode()

    def shard_of(self, i: int) -> str:
        """Name of the shard that holds sample ``i``.

        Raises:
            IndexError: there is no such sample.
        """
        self._check(i)
        return self._manifest.entries[self._shard(i)].name

    def get(self, i: int) -> dict[str, bytes]:
        """Payloads of sample ``i`` by extension.

        A wrong payload is read again from a newly opened file, and then from a new copy if the set is cached.

        Raises:
            IndexError: there is no such sample.
            DamagedShardError: a payload is not the one that was written.
            FetchError: a damaged cached shard cannot be fetched again.
        """
        self._check(i)
        return {field: self._payload(self._shard(i), i, field) for field in self.fields}

    def _check(self, i: int) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of a data set of {len(self)}")

    def _shard(self, i: int) -> int:
        return int(np.searchsorted(self._ends, i, side="right"))

    def _payload(self, shard: int, i: int, field: str) -> bytes:
        try:
            return self._read(shard, i, field)
        except DamagedShardError:
            self._forget(shard)  # the file handle may be stale, or the storage had a passing fault
        try:
            return self._read(shard, i, field)
        except DamagedShardError:
            self._forget(shard)
            if self._cache is None:
                raise
        entry = self._manifest.entries[shard]
        fetch(self._manifest.tar(entry), self._cache, size=entry.bytes, sha256=entry.sha256, verify=True)
        return self._read(shard, i, field)

    def _read(self, shard: int, i: int, field: str) -> bytes:
        offset, size, crc = (int(self._index[f"{field}.{column}"][i]) for column in ("offset", "size", "crc32"))
        try:
            payload = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise DamagedShardError(
                f"shard {self._paths[shard]}, key {self.key(i)}: payload .{field} cannot be read ({error}); "
                "copy or build the shard again"
            ) from error
        if fault := payload_fault(payload, size, crc):
            raise DamagedShardError(
                f"shard {self._paths[shard]}, key {self.key(i)}: payload .{field} is not the one that was written "
                f"({fault}); copy or build the shard again"
            )
        return payload

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            if len(self._files) >= _OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._files[shard]

    def _forget(self, shard: int) -> None:
        if (file := self._files.pop(shard, None)) is not None:
            os.close(file)

    def close(self) -> None:
        """Close all open files; the next read opens them again."""
        for shard in list(self._files):
            self._forget(shard)

    def __del__(self) -> None:
        # if __init__ failed, nothing is open
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}


def shard_files(manifest: Manifest, cache: Path | None) -> list[tuple[Path, Path]]:
    """Paths of the tar and index of every shard: in ``cache``, or next to the manifest.

    Raises:
        ValueError: the manifest is a URL and there is no ``cache``.
    """
    if cache is None:
        if is_url(manifest.place):
            raise ValueError(f"manifest {shown(manifest.place)} is a URL: also name a cache folder for its shards")
        return [(Path(manifest.tar(entry)), Path(manifest.index(entry))) for entry in manifest.entries]
    return [
        (
            cached_path(manifest.tar(entry), cache, entry.sha256),
            cached_path(manifest.index(entry), cache, entry.idx_sha256),
        )
        for entry in manifest.entries
    ]


def read_index(path: Path, entry: ShardEntry) -> Index:
    """The index of one shard, checked against its manifest entry.

    Raises:
        DamagedShardError: it differs, or cannot be read.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.idx_sha256:
        raise DamagedShardError(f"index {path} differs from its manifest; copy or build it again")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            table: NDArray[Any] = arrays["index"]
    except _UNREADABLE as error:
        raise DamagedShardError(f"index {path} cannot be read ({error!s:.200}); build the data set again") from error
    if fault := _index_fault(table, entry):
        raise DamagedShardError(f"index {path} {fault}; build the data set again")
    return {column: table[column] for column in table.dtype.names or ()}


def payload_fault(payload: bytes, size: int, crc: int) -> str | None:
    """How ``payload`` differs from its size and checksum in the index; None if it matches."""
    found = zlib.crc32(payload)
    if len(payload) == size and found == crc:
        return None
    return f"{len(payload)} of {size} bytes read, crc32 {found:08x}, expected {crc:08x}"


def _index_fault(table: NDArray[Any], entry: ShardEntry) -> str | None:
    columns = {f"{field}.{column}" for field in entry.fields for column in ("offset", "size", "crc32")}
    if set(table.dtype.names or ()) != {"key", *columns}:
        return f"does not have the columns of {', '.join(entry.fields)}"
    if table.shape != (entry.n,):
        return f"has shape {table.shape}, its manifest says {entry.n} samples"
    if table.dtype["key"].kind != "S" or any(table.dtype[column].kind not in "iu" for column in columns):
        return "has columns that are neither text nor whole numbers"
    for field in entry.fields:
        first, size = table[f"{field}.offset"], table[f"{field}.size"]
        if first.min() < 0 or size.min() < 0 or first.max() > entry.bytes or (size > entry.bytes - first).any():
            return f"places a .{field} outside its shard"
    return None


def _copy_to_cache(manifest: Manifest, cache: Path, progress: Progress | None) -> None:
    wanted = []
    for entry in manifest.entries:
        wanted.append(Wanted(place=manifest.tar(entry), sha256=entry.sha256, size=entry.bytes))
        wanted.append(Wanted(place=manifest.index(entry), sha256=entry.idx_sha256))
    fetch_all(wanted, cache, progress=progress)


def _existing(path: Path, manifest: Manifest) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {shown(manifest.place)} names it; copy or build it again")
    return path
