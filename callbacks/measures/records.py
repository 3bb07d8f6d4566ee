"""Predictions on disk, one JSON object per line and sample, and the results scored from them.

``RUN/records/<step>/<measure>/rank<r>.jsonl`` and ``protocol.json``; ``RUN/records/<step>/results.json``.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modules.files import write_json
from modules.json_lines import append_rows, drop_torn_line, read_rows

WEIGHTS = "weights"
"""Key of the weights' fingerprint in a protocol."""
Record = dict[str, Any]
"""Has at least ``sample_id``, ``split`` and ``prompt``; the rest is up to the measure."""


class RecordBook:
    """The records of one measure at one step. Every rank appends to its own file and reads the files of all ranks.

    A process that dies in the middle of a write leaves an incomplete last line. It is not a record, and the rank that
    continues the file cuts it off.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / f"rank{rank}.jsonl"

    def require_protocol(self, protocol: Mapping[str, Any]) -> None:
        """Raise ValueError if the records here were made under another protocol."""
        if changed := self._changed(protocol):
            lines = [f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items()]
            raise ValueError(
                f"the records in {self.folder} were made under another protocol ({'; '.join(lines)}). "
                "Evaluate as before, or discard them: pipelines.evaluate --fresh"
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
        path = self.folder / "protocol.json"
        if not path.is_file():
            return {}
        try:
            stored = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); discard the records: pipelines.evaluate --fresh") from error
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
        if not (self.folder / "protocol.json").is_file():
            write_json(self.folder / "protocol.json", protocol)
        drop_torn_line(self.path)

    def append(self, records: Iterable[Record]) -> None:
        """Append ``records`` to this rank's file."""
        append_rows(self.path, records)

    def read(self) -> dict[str, Record]:
        """The complete records of all ranks, by sample id.

        Raises:
            ValueError: a complete line is not a record.
        """
        merged: dict[str, Record] = {}
        for path in sorted(self.folder.glob("rank*.jsonl")):
            for record in read_rows(path, {"sample_id": str}, fix="delete the file to rebuild it"):
                merged.setdefault(record["sample_id"], record)
        return merged


def read_results(folder: Path) -> dict[str, Any]:
    """Measure to result, from the ``results.json`` of a step's folder; empty if there is no file."""
    path = folder / "results.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and score again: pipelines.evaluate") from error


def write_result(folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """Write one measure's result into the step's ``results.json``; the others stay."""
    write_json(folder / "results.json", read_results(folder) | {name: result})


def drop_result(folder: Path, name: str) -> None:
    """Remove one measure's result, if there is one, from the step's ``results.json``."""
    results = read_results(folder)
    if results.pop(name, None) is not None:
        write_json(folder / "results.json", results)
