"""Finds every fault of a data set on disk; training would stop at the first."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodules.shards.manifest import DamagedShardError, Manifest, ShardEntry
from datamodules.shards.reader import Index, payload_fault, read_index, shard_files
from datamodules.stored import captions_of, codes_of, content_of, turns_of
from modules.files import sha256 as sha256_of

PICTURES = ("jpg", "jpeg", "png", "webp")
"""Extensions of payloads that must decode as pictures."""

EVERY_SHARD = "all"
"""Takes the place of a shard's name if the fault concerns the whole set."""

Job = TypeVar("Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something wrong with a data set."""

    shard: str
    key: str | None
    """None: the fault concerns the whole shard or its index."""
    what: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked, and every fault found."""

    shards: int
    samples: int
    bytes: int
    faults: list[Fault]


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """One shard to check."""

    entry: ShardEntry
    tar: Path
    index: Path
    sha256: bool
    decode: bool
    codebook_size: int | None


def verify(
    manifest: str | Path,
    cache: str | Path | None = None,
    *,
    sha256: bool = False,
    decode: bool = False,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check every shard and index next to ``manifest``, or their copies in ``cache``.

    Sizes and indexes are always checked. ``sha256`` checks all bytes of every shard, and every payload of a damaged
    one to name the keys. ``decode`` checks for every payload that it is unchanged and that it decodes.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: the manifest cannot be used.
    """
    read = Manifest.read(manifest)
    files = shard_files(read, None if cache is None else Path(cache))
    tokenizer = read.meta.get("vq")
    size = tokenizer.get("codebook_size") if isinstance(tokenizer, dict) else None
    size = size if isinstance(size, int) else None
    shards = [
        _Shard(entry=entry, tar=tar, index=index, sha256=sha256, decode=decode, codebook_size=size)
        for entry, (tar, index) in zip(read.entries, files, strict=True)
    ]
    faults: list[Fault] = []
    names: list[NDArray[np.bytes_]] = []
    results = in_processes(_look_at, shards, processes)
    for number, (found, keys) in enumerate(results, start=1):
        faults += found
        names.append(keys)
        if progress is not None:
            progress(number, len(shards))
    unique, counts = np.unique(np.concatenate(names), return_counts=True)
    faults += [
        Fault(shard=EVERY_SHARD, key=key.decode(errors="replace"), what=f"occurs {count} times; keys are unique")
        for key, count in zip(unique[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)
    ]
    return Verification(
        shards=len(shards),
        samples=sum(entry.n for entry in read.entries),
        bytes=sum(entry.bytes for entry in read.entries),
        faults=faults,
    )


def in_processes(work: Callable[[Job], _Result], jobs: Sequence[Job], processes: int) -> Iterator[_Result]:
    """``work`` of every job, in order; in this process if ``processes`` is 1, otherwise in that many new ones."""
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    if processes == 1:
        yield from map(work, jobs)
        return
    # spawn: torch and the tokenizers have threads, which a fork would lose
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, jobs)


def _look_at(shard: _Shard) -> tuple[list[Fault], NDArray[np.bytes_]]:
    """Faults and keys of one shard."""
    name, entry = shard.entry.name, shard.entry
    faults: list[Fault] = []
    index: Index | None = None
    try:
        index = read_index(shard.index, entry)
    except FileNotFoundError:
        faults.append(Fault(shard=name, key=None, what=f"index {shard.index} is missing"))
    except (DamagedShardError, OSError) as error:
        faults.append(Fault(shard=name, key=None, what=str(error)))
    keys = np.empty(0, "S1") if index is None else index["key"]
    if not shard.tar.is_file():
        return [*faults, Fault(shard=name, key=None, what=f"{shard.tar} is missing")], keys
    found = shard.tar.stat().st_size
    if found != entry.bytes:
        faults.append(Fault(shard=name, key=None, what=f"has {found} bytes, its manifest says {entry.bytes}"))
    damaged = shard.sha256 and (digest := sha256_of(shard.tar)) != entry.sha256
    if damaged:
        faults.append(Fault(shard=name, key=None, what=f"has sha256 {digest}, its manifest says {entry.sha256}"))
    if index is not None and (damaged or shard.decode):
        faults += _payload_faults(shard, index)
    return faults, keys


def _payload_faults(shard: _Shard, index: Index) -> Iterator[Fault]:
    with shard.tar.open("rb") as file:
        for row, key in enumerate(index["key"].tolist()):
            for field in shard.entry.fields:
                offset, size, crc = (int(index[f"{field}.{column}"][row]) for column in ("offset", "size", "crc32"))
                payload = os.pread(file.fileno(), size, offset)
                if fault := payload_fault(payload, size, crc):
                    what = f".{field} is not the one that was written ({fault})"
                elif shard.decode and (fault := content_fault(field, payload, shard.codebook_size)):
                    what = f".{field} {fault}"
                else:
                    continue
                yield Fault(shard=shard.entry.name, key=key.decode(errors="replace"), what=what)


def content_fault(field: str, payload: bytes, codebook_size: int | None = None) -> str | None:
    """Why an intact payload of this extension cannot be used; None if it can."""
    if field == "json":
        return _text_fault(payload)
    if field == "vq":
        return _codes_fault(payload, codebook_size)
    if field in PICTURES:
        from datamodules.images import mmu_pixels

        try:
            mmu_pixels(payload, 32)  # the code path of training
        except ValueError as error:
            return f"does not decode ({error})"
    return None


def _text_fault(payload: bytes) -> str | None:
    try:
        content = content_of(payload)
        if not {"captions", "conversations"} & set(content):
            return "holds neither captions nor conversations"
        _ = captions_of(content) if "captions" in content else turns_of(content)
    except ValueError as error:
        return str(error)
    return None


def _codes_fault(payload: bytes, codebook_size: int | None) -> str | None:
    try:
        highest = int(codes_of(payload).max())
    except ValueError as error:
        return str(error)
    if codebook_size is not None and highest >= codebook_size:
        return f"holds code {highest}, but the codebook has {codebook_size}"
    return None


def shards_of(faults: Iterable[Fault]) -> list[str]:
    """Names of the shards to copy or build again."""
    return sorted({fault.shard for fault in faults if fault.shard != EVERY_SHARD})
