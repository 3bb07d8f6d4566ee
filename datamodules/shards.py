"""webdataset tar shards read at random, with every payload checked.

A data set is a folder with ``NAME-000000.tar`` and ``NAME-000000.idx.npz`` per shard and a ``manifest.json``, which is
written last: without it there is no data set. The index holds one structured array ``index``, a row a sample: ``key``
and, per extension, ``EXT.offset``, ``EXT.size`` and ``EXT.crc32`` of the payload in the tar.
"""

import hashlib
import io
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
_OPEN_SHARDS = 128
"""Files kept open at once, well below the usual limit of 1024."""

Sample = tuple[str, Mapping[str, bytes]]
"""Key, and payload by extension."""


class DamagedShardError(ValueError):
    """A shard is not what its manifest or index says."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What the manifest says of one shard."""

    name: str
    n: int
    bytes: int
    sha256: str
    idx_sha256: str
    fields: list[str]


class ShardSet:
    """Random access to a data set written by `shard_writer`.

    Files are opened when first read and never travel to another process with the object, so it can be pickled or
    inherited by data workers.
    """

    def __init__(
        self, folder: Path, records: list[ShardRecord], index: dict[str, NDArray[Any]], meta: dict[str, Any]
    ) -> None:
        """Use `open`."""
        self.fingerprint = fingerprint_of(records)
        self.meta = meta
        self.fields = records[0].fields
        self._paths = [tar_path(folder, record.name) for record in records]
        self._ends = np.cumsum([record.n for record in records])
        self._index = index
        self._files: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def open(cls, manifest: Path) -> "ShardSet":
        """Read ``manifest`` and the indexes beside it, and check every shard's size.

        Raises:
            FileNotFoundError: no manifest, or a shard or index it names is missing.
            ValueError: the manifest is unreadable or of another format version.
            DamagedShardError: a shard's size or an index differs from the manifest.
        """
        content = _read_manifest(manifest)
        records = [ShardRecord(**record) for record in content["shards"]]
        if content["fingerprint"] != fingerprint_of(records) or content["total"] != sum(record.n for record in records):
            raise DamagedShardError(
                f"{manifest}: total or fingerprint do not fit its shards; it was altered, build it again"
            )
        parts = []
        for record in records:
            tar = tar_path(manifest.parent, record.name)
            found = _existing(tar, manifest).stat().st_size
            if found != record.bytes:
                raise DamagedShardError(
                    f"shard {tar} has {found} bytes, its manifest says {record.bytes}; copy or build it again"
                )
            parts.append(_readindex_path(manifest, record))
        index = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
        return cls(manifest.parent, records, index, content["meta"])

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._ends[-1])

    def key(self, i: int) -> str:
        """Key of sample ``i``.

        Raises:
            IndexError: there is no such sample.
        """
        self._check(i)
        return bytes(self._index["key"][i]).decode()

    def get(self, i: int) -> dict[str, bytes]:
        """Payloads of sample ``i`` by extension.

        Raises:
            IndexError: there is no such sample.
            DamagedShardError: a payload is not the one that was written.
        """
        self._check(i)
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return {field: self._payload(shard, i, field) for field in self.fields}

    def _check(self, i: int) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of a data set of {len(self)}")

    def _payload(self, shard: int, i: int, field: str) -> bytes:
        offset, size, crc = (int(self._index[f"{field}.{column}"][i]) for column in ("offset", "size", "crc32"))
        payload = os.pread(self._file(shard), size, offset)
        if len(payload) != size or zlib.crc32(payload) != crc:
            raise DamagedShardError(
                f"shard {self._paths[shard]}, key {self.key(i)}: payload .{field} is not the one that was written "
                f"({len(payload)} of {size} bytes read, crc32 {zlib.crc32(payload):08x}, expected {crc:08x}); "
                "copy or build the shard again"
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

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        # a half-made object has nothing open
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}


def _read_manifest(manifest: Path) -> dict[str, Any]:
    if not manifest.is_file():
        raise FileNotFoundError(
            f"manifest {manifest} does not exist, so there is no complete data set; "
            "make it with `python -m pipelines.prepare`"
        )
    try:
        content: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"manifest {manifest} is not JSON: {error}") from error
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"manifest {manifest} has format_version {version!r}; this code reads {FORMAT_VERSION}")
    return content


def _readindex_path(manifest: Path, record: ShardRecord) -> dict[str, NDArray[Any]]:
    path = index_path(manifest.parent, record.name)
    content = _existing(path, manifest).read_bytes()
    if hashlib.sha256(content).hexdigest() != record.idx_sha256:
        raise DamagedShardError(f"index {path} differs from its manifest; copy or build it again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        index = arrays["index"]
    return {column: index[column] for column in index.dtype.names}


def _existing(path: Path, manifest: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {manifest} names it; copy or build it again")
    return path


def tar_path(folder: Path, shard: str) -> Path:
    """Where a shard lies."""
    return folder / f"{shard}.tar"


def index_path(folder: Path, shard: str) -> Path:
    """Where its index lies."""
    return folder / f"{shard}.idx.npz"


def fingerprint_of(records: Iterable[ShardRecord]) -> str:
    """What identifies the content of a data set: it changes with any byte of any shard."""
    return hashlib.sha256("".join(record.sha256 for record in records).encode()).hexdigest()
