"""Predictions on disk: one JSON object a line and sample, and beside them the results scored from them.

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
"""Key of the fingerprint of the weights in a protocol."""
Record = dict[str, Any]
"""At least ``sample_id``, ``split``, ``prompt``; the rest is the measure's."""


class RecordBook:
    """The records of one measure at one step. Every rank appends to a file of its own and reads those of all.

    A process that died in the middle of a line leaves a line without an end; it is not a record, and the rank that
    goes on with the file cuts it off.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / f"rank{rank}.jsonl"

    def require_protocol(self, protocol: Mapping[str, Any]) -> None:
        """Raise ValueError if records lie here that were made under another protocol."""
        if changed := self._changed(protocol):
            lines = [f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items()]
            raise ValueError(
                f"the records in {self.folder} were made under another protocol ({'; '.join(lines)}). "
                "Evaluate as before, or discard them: pipelines.evaluate --fresh"
            )

    def is_of_other_weights(self, protocol: Mapping[str, Any]) -> bool:
        """Whether the records differ from ``protocol`` in nothing but the weights that they were made with."""
        return self._changed(protocol).keys() == {WEIGHTS}

    def discard(self) -> None:
        """Delete all ranks' records, if there are any. One rank calls it, before the others open theirs."""
        for path in self.folder.glob("rank*.jsonl"):
            path.unlink()
        # last the protocol: after a kill in between, records without one would pass for those of the next evaluation
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _changed(self, protocol: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What differs between the protocol that lies here, if one does, and ``protocol``: key to (there, now)."""
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
        """Make the folder ready for appending under ``protocol``; raises as `require_protocol`."""
        self.require_protocol(protocol)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "protocol.json").is_file():
            write_json(self.folder / "protocol.json", protocol)
        drop_torn_line(self.path)

    def append(self, records: Iterable[Record]) -> None:
        """Write ``records`` after those of this rank."""
        append_rows(self.path, records)

    def read(self) -> dict[str, Record]:
        """The complete records of all ranks by sample id.

        Raises:
            ValueError: a complete line is no record.
        """
        merged: dict[str, Record] = {}
        for path in sorted(self.folder.glob("rank*.jsonl")):
            for record in read_rows(path, ("sample_id",), mend="delete the file to make it anew"):
                merged.setdefault(record["sample_id"], record)
        return merged


def read_results(folder: Path) -> dict[str, Any]:
    """Measure to result, from the ``results.json`` of a step's folder; empty where there is none."""
    path = folder / "results.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and score again: pipelines.evaluate") from error


def write_result(folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """Put one measure's result into the step's ``results.json``; the others stay."""
    write_json(folder / "results.json", read_results(folder) | {name: result})


def drop_result(folder: Path, name: str) -> None:
    """Take one measure's result, if there is one, out of the step's ``results.json``."""
    results = read_results(folder)
    if results.pop(name, None) is not None:
        write_json(folder / "results.json", results)
