"""Shard sets for tests: from samples as they are, and from plans whose makers are slow, picky or deadly."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.shards.builder import Rejected, build_shards, write_manifest
from datamodules.shards.file import write_shard
from datamodules.shards.manifest import Manifest
from datamodules.shards.reader import Sample, read_index, shard_files


def write_shards(
    folder: Path, name: str, samples: Iterable[Sample], *, per_shard: int, meta: Mapping[str, Any]
) -> Path:
    """Write ``samples`` as they are and return their manifest, with ``meta`` and nothing else in it."""
    given = list(samples)
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        write_shard(folder, f"{name}-{start // per_shard:06d}", given[start : start + per_shard], folder)
        for start in range(0, len(given), per_shard)
    ]
    write_manifest(folder, name, records, meta, folder)
    return folder / "manifest.json"


def payload_offset(manifest: Path | str, place: int, field: str) -> int:
    """Where in its tar the payload of a sample begins, as the index says."""
    read = Manifest.read(manifest)
    for entry, (_, index) in zip(read.entries, shard_files(read, None), strict=True):
        if place < entry.n:
            return int(read_index(index, entry)[f"{field}.offset"][place])
        place -= entry.n
    raise IndexError(place)


@dataclass(frozen=True)
class Item:
    """Row of a plan."""

    number: int

    @property
    def key(self) -> str:
        return f"key-{self.number:04d}"


def items(count: int = 10) -> list[Item]:
    return [Item(number) for number in range(count)]


def payloads(number: int) -> dict[str, bytes]:
    # sizes below, at and above a tar block, and none at all
    size = (0, 1, 511, 512, 513, 20_000)[number % 6]
    return {"vq": bytes([number % 256]) * size, "json": json.dumps({"n": number}).encode()}


@dataclass(frozen=True)
class Maker:
    """Samples of `Item` rows; the numbers in ``rejects`` are rejected and multiples of three counted."""

    rejects: tuple[int, ...] = ()
    seconds: float = 0.0
    dies_once: str = ""
    """A file that is there until a worker has died."""

    def __call__(self, rows: Sequence[Item], counts: Counter[str]) -> Iterator[Sample | Rejected]:
        for row in rows:
            time.sleep(self.seconds)
            if self.dies_once and row.number == 9 and os.path.exists(self.dies_once):
                os.unlink(self.dies_once)
                os.kill(os.getpid(), signal.SIGKILL)
            counts["threes"] += row.number % 3 == 0
            if row.number in self.rejects:
                yield Rejected(key=row.key, reason=f"number: {row.number} ünwanted")
            else:
                yield row.key, payloads(row.number)


def threads_of_torch(rows: Sequence[Item], _: Counter[str]) -> Iterator[Sample]:
    for row in rows:
        yield row.key, {"txt": str(torch.get_num_threads()).encode()}


def build(folder: Path, count: int = 10, *, make: Any = None, per_shard: int = 4, **values: Any) -> Path:
    meta = {"source": "test", **values.pop("meta", {})}
    return build_shards(folder, "demo", items(count), make or Maker(), per_shard=per_shard, meta=meta, **values)
