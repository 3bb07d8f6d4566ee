"""Predictions on disk, one JSON object per line and sample, and the results scored from them.

``RUN/records/<step>/<measure>/rank<r>.jsonl`` and ``protocol.json``; ``RUN/records/<step>/results.json``.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modules.files import write_json
from modules.json_lines import Keys, append_rows, drop_torn_line, read_rows
from modules.locks import lock_of, locked

PROTOCOL = "protocol.json"
RESULTS = "results.json"
WEIGHTS = "weights"
"""Key of the weights' fingerprint in a protocol."""
FRESH = "discard the records: pipelines.evaluate --fresh"
SAMPLE: Keys = {"sample_id": str, "split": str, "prompt": str}
"""What every record of a measure holds: key to type."""
Record = dict[str, Any]
"""Holds the keys of `SAMPLE`; the rest is up to the measure."""
PATIENCE_SECONDS = 60.0
"""After a signal to stop, how long to wait for another evaluation: a training has steps to save."""


class RecordBook:
    """The records of one measure at one step. Every rank appends to its own file and reads the files of all ranks.

    A process that dies in the middle of a write leaves an incomplete last line. It is not a record, and the rank that
    continues the file cuts it off.
    """

    def __init__(self, folder: Path, rank: int = 0, keys: Keys | None = None) -> None:
        """``keys``: what a record must hold beyond its sample's id."""
        self.folder = folder
        self.path = folder / f"rank{rank}.jsonl"
        self.keys = {"sample_id": str, **(keys or {})}

    def require_protocol(self, protocol: Mapping[str, Any]) -> None:
        """Raise ValueError if the records here were made under another protocol, or nothing says under which."""
        if changed := self._changed(protocol):
            lines = [f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items()]
            raise ValueError(
                f"the records in {self.folder} were made under another protocol ({'; '.join(lines)}). "
                f"Evaluate as before, or {FRESH}"
            )

    def is_of_other_weights(self, protocol: Mapping[str, Any]) -> bool:
        """Whether the records differ from ``protocol`` only in the weights they were made with."""
        return self._changed(protocol).keys() == {WEIGHTS}

    def discard(self) -> None:
        """Delete all ranks' records, if there are any. Only one rank may call it, before the others open theirs."""
        for path in self.folder.glob("rank*.jsonl"):
            path.unlink()
        # the protocol last: if we are killed in between, records without a protocol would pass as the next evaluation's
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _changed(self, protocol: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What differs between the stored protocol and ``protocol``: key to (there, now). Empty if none is stored."""
        # in this order: another rank that begins now writes its protocol first
        recorded = any(path.stat().st_size for path in self.folder.glob("rank*.jsonl"))
        stored = _read(self.folder / PROTOCOL, FRESH)
        if stored is None:
            if recorded:
                raise ValueError(
                    f"{self.folder} holds records but no {PROTOCOL}, so nothing says how they were made; {FRESH}"
                )
            return {}
        wanted = json.loads(json.dumps(protocol))
        return {
            key: (stored.get(key), wanted.get(key))
            for key in sorted(stored.keys() | wanted.keys())
            if stored.get(key) != wanted.get(key)
        }

    def open(self, protocol: Mapping[str, Any]) -> None:
        """Prepare the folder for appending under ``protocol``. Raises like `require_protocol`."""
        self.require_protocol(protocol)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / PROTOCOL).is_file():
            write_json(self.folder / PROTOCOL, protocol)
        drop_torn_line(self.path)

    def append(self, records: Iterable[Record]) -> None:
        """Append ``records`` to this rank's file."""
        append_rows(self.path, records)

    def read(self) -> dict[str, Record]:
        """The complete records of all ranks, by sample id.

        Raises:
            ValueError: a complete line is not a record, or two records of one sample differ.
        """
        merged: dict[str, Record] = {}
        for path in sorted(self.folder.glob("rank*.jsonl")):
            for record in read_rows(path, self.keys, fix="delete the file to rebuild it"):
                sample = record["sample_id"]
                if merged.setdefault(sample, record) != record:
                    raise ValueError(f"{self.folder} holds two different records of sample {sample}; {FRESH}")
        return merged


def read_results(folder: Path) -> dict[str, Any]:
    """Measure to result, from the ``results.json`` of a step's folder; empty if there is no file."""
    return _read(folder / RESULTS, "delete it, and score again: pipelines.evaluate") or {}


def write_result(folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """Write one measure's result into the step's ``results.json``; the others stay, also those of other processes."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(folder / RESULTS), patience=PATIENCE_SECONDS):
        write_json(folder / RESULTS, read_results(folder) | {name: result})


def drop_result(folder: Path, name: str) -> None:
    """Remove one measure's result, if there is one, from the step's ``results.json``."""
    if name not in read_results(folder):
        return
    with locked(lock_of(folder / RESULTS), patience=PATIENCE_SECONDS):
        results = read_results(folder)
        if results.pop(name, None) is not None:
            write_json(folder / RESULTS, results)


def _read(path: Path, fix: str) -> dict[str, Any] | None:
    """The object in a JSON file of ours; None if there is no file. The error for a damaged one ends with ``fix``."""
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {fix}") from error
