"""Metrics as they read back from the file."""

import json
from pathlib import Path
from typing import Any

import pytest

from callbacks.tracking import read_metrics
from modules.run_files import METRICS


def test_of_a_step_logged_again_the_higher_attempt_counts(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = [
        {"step": 1, "attempt": 1, "loss": 9.0},
        {"step": 2, "attempt": 1, "loss": 8.0},
        {"step": 2, "attempt": 1, "eval": 0.1},
        {"step": 3, "attempt": 1, "loss": 7.0},
        {"step": 2, "attempt": 2, "loss": 6.0},
        {"step": 4, "attempt": 2, "loss": 5.0},
    ]
    expected = [
        {"step": 1, "attempt": 1, "loss": 9.0},
        {"step": 2, "attempt": 2, "loss": 6.0, "eval": 0.1},
        {"step": 3, "attempt": 1, "loss": 7.0},
        {"step": 4, "attempt": 2, "loss": 5.0},
    ]
    for order in (written, written[::-1]):
        (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in order))
        assert read_metrics(tmp_path) == expected


@pytest.mark.parametrize("line", [b'{"step": 2, "att', b"\0\0\0", b"\xff\xfe", b"[1]", b'{"attempt": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "attempt": 1}\n' + line + b'\n{"step": 3, "attempt": 1}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is damaged.*; delete that line"):
        read_metrics(tmp_path)


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
