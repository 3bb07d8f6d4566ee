"""Starts the real entry points in processes of their own, and reads back what they left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.tracking import read_metrics
from modules.checkpoints import find_checkpoint, model_weights, read_state

ROOT = Path(__file__).parents[2]
UNIFIED = "configs/smoke_unified.yaml"
STEPS, SAVED_EVERY = 12, 4
NO_EVALUATION = [f"evaluation.{task}=null" for task in ("pope", "gqa", "fid", "samples", "speed")]
TIMED = {"time", "attempt", "train/tokens_per_s"}
"""What may differ between two runs of the same configuration."""

BESIDE = ("eval/", "eval_mini/", "system/")

Train = Callable[..., "subprocess.CompletedProcess[str]"]


def command(config: str | Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.train", str(config), *overrides]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LENGTH = [f"trainer.max_steps={STEPS}", f"checkpoint.every_n_steps={SAVED_EVERY}"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[dict[str, Any]]:
    """What was logged at each step, without what may differ from run to run."""
    return [
        {key: value for key, value in row.items() if key not in TIMED and not key.startswith(BESIDE)}
        for row in read_metrics(folder)
    ]


def common_losses(folder: Path) -> list[dict[str, Any]]:
    """What is logged under every strategy: a part's gradient lies on one rank under DDP alone."""
    beside = ("grad_norm/", "param_norm/")
    return [{key: value for key, value in row.items() if not key.startswith(beside)} for row in losses(folder)]


def keys_of_steps(folder: Path) -> dict[int, dict[str, list[str]]]:
    """Keys of each step's samples, in the order of micro-steps and ranks; the higher attempt counts."""
    rows = lines(folder / "samples.jsonl")
    last: dict[int, int] = {}
    for row in rows:
        last[row["step"]] = max(last.get(row["step"], 0), row["attempt"])
    found: dict[int, dict[str, list[str]]] = {}
    for row in rows:
        if row["attempt"] == last[row["step"]]:
            step = found.setdefault(row["step"], {"mmu": [], "t2i": []})
            for task in step:
                step[task] += row[task]
    return found


def weights(folder: Path) -> dict[str, Tensor]:
    return model_weights(read_state(find_checkpoint(folder, pytest.fail)))


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def kill_after(step: int, words: list[str], folder: Path, sign: signal.Signals = signal.SIGKILL) -> int:
    """Start a training and end all its processes with ``sign`` once ``step`` is logged; returns the exit code."""
    return kill_when(lambda: any(row["step"] >= step for row in read_metrics(folder)), words, sign=sign)


def kill_when(
    ready: Callable[[], bool], words: list[str], *, pause: float = 0.0, sign: signal.Signals = signal.SIGKILL
) -> int:
    """Start a training and end all its processes with ``sign``, ``pause`` seconds after ``ready``."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(pause)
        os.killpg(process.pid, sign)
        process.communicate(timeout=60)  # returns when the last of them is gone, who holds its standard error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode
