"""Starts trainings on this machine's GPUs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from callbacks.tracking import read_metrics
from pipelines.config import load
from pipelines.scenes import prepare_scenes
from tests.integration.running import NO_EVALUATION, ROOT, UNIFIED, command

COMMON = [
    *("scenes.images=80", "scenes.val_images=4", "scenes.patch_size=8", "model.image_tokens=64"),
    *("tracking.wandb=disabled", "hardware.accelerator=gpu", "trainer.deterministic=true", "trainer.max_steps=6"),
]
LIMIT = 300
"""Seconds that a run may take: most of them go into compiling kernels."""


@dataclass(frozen=True)
class Trainings:
    """Trains smoke_unified on prepared scenes, in deterministic mode and without evaluation."""

    data: str

    @classmethod
    def prepared(cls, folder: Path) -> "Trainings":
        """With scenes drawn into ``folder``."""
        data = f"scenes.folder={folder / 'scenes'}"
        config = load(ROOT / UNIFIED, [*COMMON, data]).scenes
        assert config is not None
        prepare_scenes(config, say=lambda _: None)
        return cls(data)

    def on_one(self, folder: Path, *more: str) -> None:
        """One rank on one GPU."""
        _finish([self._start(folder, *more, "hardware.devices=1", "hardware.nodes=1")])

    def on_two(self, folder: Path, *more: str) -> None:
        """Two ranks, to the end."""
        _finish(self._start_two(folder, *more))

    def kill_two(self, folder: Path, *more: str, after: int) -> None:
        """Two ranks, killed once step ``after`` is logged."""
        processes = self._start_two(folder, *more)
        try:
            _wait(lambda: any(row["step"] >= after for row in read_metrics(folder)), processes)
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def _start_two(self, folder: Path, *more: str) -> list["subprocess.Popen[str]"]:
        if torch.cuda.device_count() >= 2:
            return [self._start(folder, *more, "hardware.devices=2", "hardware.nodes=1")]
        # two nodes share the GPU: NCCL, told that they are two hosts, does not refuse it and talks over sockets
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started_by_torchrun = {
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"},
            **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "NCCL_SOCKET_IFNAME": "lo"},
        }
        words = [*more, "hardware.devices=1", "hardware.nodes=2"]
        return [
            self._start(folder, *words, **started_by_torchrun, RANK=rank, GROUP_RANK=rank, NCCL_HOSTID=f"host-{rank}")
            for rank in ("0", "1")
        ]

    def _start(self, folder: Path, *more: str, **environment: str) -> "subprocess.Popen[str]":
        words = command(UNIFIED, *COMMON, self.data, *NO_EVALUATION, f"run.dir={folder}", *more)
        return subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1", **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _finish(processes: list["subprocess.Popen[str]"]) -> None:
    try:
        _wait(lambda: all(process.poll() is not None for process in processes), processes)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(t[-6000:] for t in said)


def _wait(ready: Callable[[], bool], processes: list["subprocess.Popen[str]"]) -> None:
    """Until ``ready``, a failure of one of the processes, or the end of patience."""
    deadline = time.monotonic() + LIMIT
    while not ready() and not any(process.poll() for process in processes):
        if time.monotonic() > deadline:
            sys.stdout.write(f"not ready after {LIMIT} s\n")
            return
        time.sleep(0.05)
