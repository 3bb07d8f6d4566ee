"""One of two ranks fails, or both are told by Ctrl-C: who says what, by which exit code, and that none stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from callbacks.tracking import read_metrics

from .failing_rank import MESSAGE
from .running import ENVIRONMENT, NO_EVALUATION, ROOT, UNIFIED


def start(folder: Path, small: list[str], **environment: str) -> "subprocess.Popen[str]":
    """Two ranks that train and fail as ``environment`` says. What they print ends when both have."""
    words = [*small, *NO_EVALUATION, f"run.dir={folder / 'run'}", "trainer.max_steps=5000", "hardware.devices=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.failing_rank", UNIFIED, *words],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("fails", "code", "message"),
    [
        ("0 RuntimeError", 1, f"RuntimeError: {MESSAGE}"),
        ("1 RuntimeError", 1, f"RuntimeError: {MESSAGE}"),
        ("1 ValueError", 2, f"error: {MESSAGE}"),
    ],
)
def test_a_rank_that_fails_alone_says_why_and_ends_the_run(
    small: list[str], tmp_path: Path, fails: str, code: int, message: str
) -> None:
    process = start(tmp_path, small, FAILS=fails)
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, message in stderr) == (code, True), stderr
    assert ("Traceback" in stderr) == (code == 1), stderr


def test_ctrl_c_ends_all_ranks_and_rank_0_finishes_what_it_is_at(small: list[str], tmp_path: Path) -> None:
    """Lightning would kill it some seconds after the others have ended."""
    process = start(tmp_path, small, LINGERS="8")
    try:
        deadline = time.monotonic() + 120
        while not read_metrics(tmp_path / "run"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "start the same command again to go on from the last checkpoint" in stderr
