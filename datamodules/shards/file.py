"""Writes one shard: a webdataset tar and its index, the same bytes for the same samples."""

import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from datamodules.shards.manifest import ShardEntry, index_path, tar_path
from datamodules.shards.reader import Sample
from modules.files import new_file, sha256

_BLOCK = 512
_EXTENSION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def write_shard(folder: Path, shard: str, samples: Iterable[Sample], scratch: Path) -> ShardEntry:
    """Write ``samples``, at least one, to the tar and index of ``shard``, and return their manifest entry.

    Each file is written in ``scratch`` (on the same file system), synced to disk and moved to its place.

    Raises:
        ValueError: samples have different fields, or a field is not a valid extension.
    """
    # imported here because it imports torch, which readers of a manifest do not need
    from webdataset import TarWriter

    keys: list[str] = []
    columns: dict[str, list[int]] = {}
    with new_file(tar_path(folder, shard), scratch) as file:
        # an integer mtime: a fractional one costs an extra header per member
        with TarWriter(file, encoder=False, mtime=0) as writer:
            for key, payloads in _alike(samples):
                keys.append(key)
                for field in sorted(payloads):
                    payload = payloads[field]
                    writer.write({"__key__": key, field: payload})
                    padded = -(-len(payload) // _BLOCK) * _BLOCK
                    entry = (writer.tarstream.offset - padded, len(payload), zlib.crc32(payload))
                    for column, value in zip(("offset", "size", "crc32"), entry, strict=True):
                        columns.setdefault(f"{field}.{column}", []).append(value)
        size = file.tell()
    _write_index(index_path(folder, shard), keys, columns, scratch)
    return ShardEntry(
        name=shard,
        n=len(keys),
        bytes=size,
        sha256=sha256(tar_path(folder, shard)),
        idx_sha256=sha256(index_path(folder, shard)),
        fields=sorted({column.rsplit(".", 1)[0] for column in columns}),
    )


def _alike(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Pass samples on, and check that all have the same valid fields."""
    fields: list[str] = []
    for key, payloads in samples:
        fields = fields or sorted(payloads)
        if sorted(payloads) != fields or not fields:
            raise ValueError(
                f"key {key!r} has fields {sorted(payloads)}, the samples before it {fields}; all must have the same"
            )
        for field in fields:
            if not _EXTENSION.fullmatch(field):
                raise ValueError(
                    f"key {key!r}: field {field!r} is not an extension (lower-case letters, digits, '_', inner dots)"
                )
        yield key, payloads


def _write_index(path: Path, keys: list[str], columns: dict[str, list[int]], scratch: Path) -> None:
    encoded = np.array([key.encode() for key in keys])
    dtype = [("key", encoded.dtype), *((column, "<u4" if column.endswith("crc32") else "<i8") for column in columns)]
    index = np.empty(len(keys), dtype=dtype)
    index["key"] = encoded
    for column, values in columns.items():
        index[column] = values
    with new_file(path, scratch) as file:
        np.savez(file, index=index)
