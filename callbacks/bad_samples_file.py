"""Reads ``RUN/bad_samples.jsonl``, which `callbacks.bad_samples` writes."""

from pathlib import Path
from typing import Any

from modules.json_lines import read_rows


def read_bad_samples(path: Path, up_to_step: int) -> list[dict[str, Any]]:
    """Return the lines of steps up to ``up_to_step``. A repeated step finds the same samples again; they count once."""
    keys = {"step": int, "task": str, "epoch": int, "key": str, "substitute": str}
    found = {tuple(row[key] for key in keys): row for row in read_rows(path, keys)}
    return [row for row in found.values() if row["step"] <= up_to_step]
