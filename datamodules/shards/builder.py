"""Builds a data set of webdataset shards: in parallel, resumable after a kill, and to the same bytes each time.

A build follows a frozen plan, a list of rows. Shard k holds the samples made from rows
[k * per_shard, (k + 1) * per_shard). A rejected row makes its shard smaller, and a shard without samples has no file.
During the build the folder holds ``.build``, with the plan's hash and a note for each finished shard. The note is
written after the shard itself, so a build that is started again only makes the missing shards. ``manifest.json``
comes last.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

from typing_extensions import TypedDict

from datamodules.shards.file import write_shard
from datamodules.shards.folders import FolderError, holds, locked_folder
from datamodules.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    ShardEntry,
    ShardRecord,
    brace_pattern,
    fingerprint_of,
    index_path,
    tar_path,
)
from datamodules.shards.reader import Sample
from datamodules.shards.workers import Tick, run_jobs
from modules.files import remove_partials, write_file
from modules.reading import read_json

REJECTED = "rejected.jsonl"
BUILD = ".build"
BUILDER_VERSION = 2
"""Raise this whenever the same plan gives other bytes."""
_PLAN = "plan.json"
_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Row(Protocol):
    """One row of a plan: small, and picklable if there are several processes."""

    @property
    def key(self) -> str:
        """Key of the sample made from it."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that does not become a sample, and why."""

    key: str
    reason: str


class RejectedEntry(TypedDict):
    """A line of ``rejected.jsonl``."""

    key: str
    reason: Any
    """A text, which may hold half of a surrogate pair."""


RowT = TypeVar("RowT", bound=Row)
Make = Callable[[Sequence[RowT], Counter[str]], Iterable[Sample | Rejected]]
"""Turns each row of a shard into a sample or a reject, and adds to the counts whatever is worth counting.

It must depend on nothing but the rows, because a shard is rebuilt after a kill.
"""
Progress = Callable[[int, int], None]
"""Called with the number of rows done, including those of earlier starts, and the number of all rows."""


def build_shards(
    folder: Path,
    name: str,
    rows: Sequence[RowT],
    make: Make[RowT],
    *,
    per_shard: int,
    meta: Mapping[str, Any],
    counts: Mapping[str, int] | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Build the shards ``name-000000``, ``name-000001``, ... of ``rows`` in ``folder`` and return their manifest.

    ``meta`` must name everything else that the bytes depend on, besides the rows' keys: files with their hashes, and
    settings. The manifest holds it, with the counts, the builder's version and the plan's hash. ``counts`` says what
    the plan leaves out. Rejected rows go to ``rejected.jsonl``. Returns at once if the same plan has been built before.
    Several builders of one folder work one after the other. ``make`` must be picklable if ``processes`` is above 1.

    Raises:
        FileExistsError: the folder already holds another data set.
        FolderError: the folder holds an unfinished build of another plan.
        ValueError: a key has characters other than letters, digits, "-" and "_", or occurs twice; samples have
            different fields; or no row became a sample (the message gives the first reasons).
        ChildProcessError: a worker process died; start the build again to continue.
    """
    _check(name, [row.key for row in rows], per_shard, processes)
    plan = _plan(name, rows, per_shard, meta)
    shards = [
        _Shard(f"{name}-{number:06d}", rows[start : start + per_shard])
        for number, start in enumerate(range(0, len(rows), per_shard))
    ]
    if _is_built(folder, plan) and not (folder / BUILD).exists():  # it may be on a disk that cannot be written
        return folder / MANIFEST
    with locked_folder(folder):
        if _is_built(folder, plan, tidy=True):
            return folder / MANIFEST
        _open_build(folder, plan)
        missing = [shard for shard in shards if not _is_committed(folder, shard.name)]
        done = len(rows) - sum(len(shard.rows) for shard in missing)

        def report(ticks: int) -> None:
            if progress:
                progress(done + ticks, len(rows))

        report(0)
        run_jobs(_Builder(folder, make), missing, processes=processes, report=report)
        identified = {**meta, **_identity(plan)}
        return _finish(folder, name, [shard.name for shard in shards], identified, Counter(counts))


def _check(name: str, keys: Sequence[str], per_shard: int, processes: int) -> None:
    """Refuse names and keys that readers of the format would misread."""
    if not _KEY.fullmatch(name):
        raise ValueError(f"data set name {name!r} may hold only letters, digits, '-' and '_': readers split at dots")
    for setting, value in (("per_shard", per_shard), ("processes", processes)):
        if value < 1:
            raise ValueError(f"{setting}={value} must be at least 1")
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {key!r} may hold only letters, digits, '-' and '_': readers split at the first dot")
    for first, second in pairwise(sorted(keys)):
        if first == second:
            raise ValueError(f"key {first!r} occurs twice; keys must be unique in a data set")


def _plan(name: str, rows: Sequence[Row], per_shard: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a build."""
    plan = {"builder_version": BUILDER_VERSION, "name": name, "per_shard": per_shard, "rows": len(rows), **meta}
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode())
    for row in rows:
        digest.update(f"\n{row.key}".encode())
    return {**plan, "plan": digest.hexdigest()}


def _identity(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plan[key] for key in ("builder_version", "plan")}


def _is_built(folder: Path, plan: Mapping[str, Any], *, tidy: bool = False) -> bool:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder for the shards")
    manifest = folder / MANIFEST
    if not manifest.exists():
        return False
    if Manifest.read(manifest).meta.get("plan") != plan["plan"]:
        raise FileExistsError(
            f"{manifest} exists: the folder already holds a data set, made from other files or settings. "
            "Choose another folder or delete it"
        )
    if tidy:  # what is left over if the builder was killed between its last two steps
        shutil.rmtree(folder / BUILD, ignore_errors=True)
    return True


def _open_build(folder: Path, plan: Mapping[str, Any]) -> None:
    """Begin the build of ``plan`` in ``folder``, or check that an unfinished one has the same plan."""
    build = folder / BUILD
    build.mkdir(parents=True, exist_ok=True)
    remove_partials(build)
    if not holds(build, _PLAN, plan):
        write_file(build / _PLAN, json.dumps(plan, indent=2) + "\n", build)


@dataclass(frozen=True)
class _Shard:
    name: str
    rows: Sequence[Any]


class _Commit(TypedDict):
    """The note that a shard is done."""

    record: ShardRecord | None
    """None if it has no samples."""
    idx_bytes: int | None
    rejected: list[RejectedEntry]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Builder:
    """Builds one shard and notes that it is done."""

    folder: Path
    make: Make[Any]

    def __call__(self, shard: _Shard, tick: Tick) -> None:
        counts: Counter[str] = Counter()
        rejected: list[Rejected] = []
        keys = {row.key for row in shard.rows}

        def kept() -> Iterable[Sample]:
            for entry in self.make(shard.rows, counts):
                keys.remove(entry.key if isinstance(entry, Rejected) else entry[0])
                if isinstance(entry, Rejected):
                    rejected.append(entry)
                else:
                    yield entry
                tick()

        samples = iter(kept())
        first = next(samples, None)
        build = self.folder / BUILD
        written = None if first is None else write_shard(self.folder, shard.name, chain([first], samples), build)
        assert not keys, f"rows without sample or reject: {sorted(keys)[:3]}"
        commit = {
            "record": written and asdict(written),
            "idx_bytes": written and index_path(self.folder, shard.name).stat().st_size,
            "rejected": [asdict(each) for each in rejected],
            "counts": {**counts, "samples": written.n if written else 0, "rejected": len(rejected)},
        }
        write_file(_commit_path(self.folder, shard.name), json.dumps(commit) + "\n", build)


def _is_committed(folder: Path, shard: str) -> bool:
    """Whether a shard is noted as done and its files have the noted sizes."""
    if not _commit_path(folder, shard).exists():
        return False
    commit = _read_commit(folder, shard)
    if commit["record"] is None:
        return True
    sizes = {tar_path(folder, shard): commit["record"]["bytes"], index_path(folder, shard): commit["idx_bytes"]}
    return all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())


def _finish(folder: Path, name: str, shards: Sequence[str], meta: Mapping[str, Any], counts: Counter[str]) -> Path:
    """Write the list of rejects and the manifest from all notes."""
    commits = [_read_commit(folder, shard) for shard in shards]
    entries = [ShardEntry.of(commit["record"]) for commit in commits if commit["record"]]
    rejected = [Rejected(**each) for commit in commits for each in commit["rejected"]]
    for commit in commits:
        counts.update(commit["counts"])
    build = folder / BUILD
    write_file(folder / REJECTED, "".join(json.dumps(asdict(each)) + "\n" for each in rejected), build)
    if not entries:
        # so that a start with fixed files does not reuse the notes
        shutil.rmtree(build)
        reasons = "; ".join(f"{each.key}: {each.reason}" for each in rejected[:3]) or "there were none"
        raise ValueError(f"none of the {len(rejected)} entries for {folder} can be used ({reasons})")
    for before, after in pairwise(entries):
        if before.fields != after.fields:
            raise ValueError(
                f"shard {after.name} has fields {after.fields}, {before.name} before it {before.fields}; "
                "all need the same"
            )
    write_manifest(folder, name, entries, {**meta, "counts": dict(sorted(counts.items()))}, build)
    shutil.rmtree(build)
    return folder / MANIFEST


def write_manifest(
    folder: Path, name: str, entries: Sequence[ShardEntry], meta: Mapping[str, Any], scratch: Path
) -> None:
    """Write the manifest of ``entries``, which makes their shards a data set."""
    content = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "pattern": brace_pattern([entry.name for entry in entries]),
        "shards": [asdict(entry) for entry in entries],
        "total": sum(entry.n for entry in entries),
        "fingerprint": fingerprint_of(entries),
        "meta": dict(meta),
    }
    write_file(folder / MANIFEST, json.dumps(content, indent=2) + "\n", scratch)


def _commit_path(folder: Path, shard: str) -> Path:
    return folder / BUILD / f"{shard}.json"


def _read_commit(folder: Path, shard: str) -> _Commit:
    try:
        return read_json(_commit_path(folder, shard), _Commit, "note")
    except ValueError as error:
        raise FolderError(f"{error}; delete it and start again: its shard is built again") from error
