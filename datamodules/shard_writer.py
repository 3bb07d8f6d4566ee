"""Writes webdataset tar shards with their indexes: the same samples give the same bytes."""

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datamodules.shards import FORMAT_VERSION, MANIFEST, Sample, ShardRecord, fingerprint_of, index_path, tar_path
from modules.files import sha256

_BLOCK = 512
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXTENSION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


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
        "fingerprint": fingerprint_of(records),
        "meta": dict(meta),
    }
    with _replacing(manifest) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    return manifest


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
    with _replacing(tar_path(folder, shard)) as file:
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
    with _replacing(index_path(folder, shard)) as file:
        encoded = np.array([key.encode() for key in keys])
        dtype = [
            ("key", encoded.dtype),
            *((column, "<u4" if column.endswith("crc32") else "<i8") for column in columns),
        ]
        index = np.empty(len(keys), dtype=dtype)
        index["key"] = encoded
        for column, values in columns.items():
            index[column] = values
        np.savez(file, index=index)
    return ShardRecord(
        name=shard,
        n=len(keys),
        bytes=size,
        sha256=sha256(tar_path(folder, shard)),
        idx_sha256=sha256(index_path(folder, shard)),
        fields=sorted({column.rsplit(".", 1)[0] for column in columns}),
    )


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
