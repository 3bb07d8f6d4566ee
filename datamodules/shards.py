"""webdataset tar shards with an index: written reproducibly, read at random with every payload checked.

A data set is a folder with ``NAME-000000.tar`` and ``NAME-000000.idx.npz`` per shard and a ``manifest.json``, which is
written last: without it there is no data set. The index holds ``keys`` and, per extension, ``EXT.offset``,
``EXT.size`` and ``EXT.crc32`` of every payload in the tar.
"""

import hashlib
import io
import json
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from modules.files import sha256

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_BLOCK = 512
_OPEN_SHARDS = 128
"""Files kept open at once, well below the usual limit of 1024."""
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXTENSION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")

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


def write_shards(
    folder: Path, name: str, samples: Iterable[Sample], *, per_shard: int, meta: Mapping[str, Any]
) -> Path:
    """Write ``samples`` to shards of ``per_shard`` samples and return the path of their manifest.

    The same samples give the same bytes. ``meta`` is written into the manifest, and read only when all samples have
    been written, so whoever yields them may fill in counts meanwhile.

    Raises:
        FileExistsError: the folder already holds a data set.
        ValueError: no samples; a key with other signs than letters, digits, "-" and "_"; a key that occurs twice;
            samples with different fields.
    """
    if not _KEY.fullmatch(name):
        raise ValueError(f"data set name {name!r} may hold only letters, digits, '-' and '_': readers split at dots")
    if per_shard < 1:
        raise ValueError(f"per_shard={per_shard} must be at least 1")
    manifest = folder / MANIFEST
    if manifest.exists():
        raise FileExistsError(
            f"{manifest} exists: the folder already holds a data set. Choose another folder or delete it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    rest = _checked(samples)
    records: list[ShardRecord] = []
    for first in rest:
        shard = f"{name}-{len(records):06d}"
        records.append(_write_shard(folder, shard, chain([first], islice(rest, per_shard - 1))))
    if not records:
        raise ValueError(f"no samples for {folder / name}: nothing to write")
    content = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "shards": [asdict(record) for record in records],
        "total": sum(record.n for record in records),
        "fingerprint": _fingerprint(records),
        "meta": dict(meta),
    }
    with _replacing(manifest) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    return manifest


class ShardSet:
    """Random access to a data set written by `write_shards`.

    Files are opened when first read and never travel to another process with the object, so it can be pickled or
    inherited by data workers.
    """

    def __init__(
        self, folder: Path, records: list[ShardRecord], index: dict[str, NDArray[Any]], meta: dict[str, Any]
    ) -> None:
        """Use `open`."""
        self.fingerprint = _fingerprint(records)
        self.meta = meta
        self.fields = records[0].fields
        self._paths = [_tar(folder, record.name) for record in records]
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
        if content["fingerprint"] != _fingerprint(records) or content["total"] != sum(record.n for record in records):
            raise DamagedShardError(
                f"{manifest}: total or fingerprint do not fit its shards; it was altered, build it again"
            )
        parts = []
        for record in records:
            tar = _tar(manifest.parent, record.name)
            found = _existing(tar, manifest).stat().st_size
            if found != record.bytes:
                raise DamagedShardError(
                    f"shard {tar} has {found} bytes, its manifest says {record.bytes}; copy or build it again"
                )
            parts.append(_read_index(manifest, record))
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
        return bytes(self._index["keys"][i]).decode()

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


def _checked(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Pass samples on, refusing what readers of the format would mix up."""
    seen: set[str] = set()
    fields: list[str] = []
    for key, payloads in samples:
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {key!r} may hold only letters, digits, '-' and '_': readers split at the first dot")
        if key in seen:
            raise ValueError(f"key {key!r} occurs twice; keys are unique over a data set")
        fields = fields or sorted(payloads)
        if sorted(payloads) != fields or not fields:
            raise ValueError(
                f"key {key!r} has fields {sorted(payloads)}, the samples before it {fields}; all need the same"
            )
        for field in fields:
            if not _EXTENSION.fullmatch(field):
                raise ValueError(
                    f"key {key!r}: field {field!r} is no extension (lower-case letters, digits, '_', inner dots)"
                )
        seen.add(key)
        yield key, payloads


def _write_shard(folder: Path, shard: str, samples: Iterable[Sample]) -> ShardRecord:
    # imported here because it brings torch along, which readers of a manifest can do without
    from webdataset import TarWriter

    keys: list[str] = []
    columns: dict[str, list[int]] = {}
    with _replacing(_tar(folder, shard)) as file:
        # an integer mtime: a fractional one costs a header per member and no two builds would be alike
        with TarWriter(file, encoder=False, mtime=0) as writer:
            for key, payloads in samples:
                keys.append(key)
                for field in sorted(payloads):
                    payload = payloads[field]
                    writer.write({"__key__": key, field: payload})
                    padded = -(-len(payload) // _BLOCK) * _BLOCK
                    entry = (writer.tarstream.offset - padded, len(payload), zlib.crc32(payload))
                    for column, value in zip(("offset", "size", "crc32"), entry, strict=True):
                        columns.setdefault(f"{field}.{column}", []).append(value)
        size = file.tell()
    with _replacing(_index(folder, shard)) as file:
        arrays: dict[str, Any] = {column: np.array(values, dtype=np.int64) for column, values in columns.items()}
        np.savez(file, keys=np.array([key.encode() for key in keys]), **arrays)
    return ShardRecord(
        name=shard,
        n=len(keys),
        bytes=size,
        sha256=sha256(_tar(folder, shard)),
        idx_sha256=sha256(_index(folder, shard)),
        fields=sorted({column.rsplit(".", 1)[0] for column in columns}),
    )


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


def _read_index(manifest: Path, record: ShardRecord) -> dict[str, NDArray[Any]]:
    path = _index(manifest.parent, record.name)
    content = _existing(path, manifest).read_bytes()
    if hashlib.sha256(content).hexdigest() != record.idx_sha256:
        raise DamagedShardError(f"index {path} differs from its manifest; copy or build it again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _existing(path: Path, manifest: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {manifest} names it; copy or build it again")
    return path


def _tar(folder: Path, shard: str) -> Path:
    return folder / f"{shard}.tar"


def _index(folder: Path, shard: str) -> Path:
    return folder / f"{shard}.idx.npz"


def _fingerprint(records: Iterable[ShardRecord]) -> str:
    return hashlib.sha256("".join(record.sha256 for record in records).encode()).hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes ``path``'s place, safe on disk, once the block has succeeded."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
