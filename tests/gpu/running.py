"""Starts trainings on this machine's GPUs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from callbacks.tracking import read_metrics
from datamodules.scenes.prepare import prepare_scenes
from pipelines.run.config import load
from pipelines.run.ending import PREEMPTED
from tests.integration.running import NO_EVALUATION, ROOT, UNIFIED

COMMON = [
    *("scenes.images=80", "scenes.val_images=4", "scenes.patch_size=8", "model.image_tokens=64"),
    *("tracking.wandb=disabled", "hardware.accelerator=gpu", "trainer.deterministic=true", "trainer.max_steps=6"),
]
LIMIT = 300
"""Seconds that a run may take: most of them go into compiling kernels."""


@dataclass(frozen=True)
class Trainings:
    """Trains smoke_unified on prepared scenes by ``module``, in deterministic mode and without evaluation."""

    data: str
    module: str = "pipelines.train"

    @classmethod
    def prepared(cls, folder: Path) -> "Trainings":
        """With scenes drawn into ``folder``."""
        data = f"scenes.folder={folder / 'scenes'}"
        config = load(ROOT / UNIFIED, [*COMMON, data]).scenes
        assert config is not None
        prepare_scenes(config, say=lambda _: None)
        return cls(data)

    def on_one(self, folder: Path, *more: str) -> None:
        """One rank on one GPU, to the end."""
        self._run(self._one(folder, *more))

    def on_two(self, folder: Path, *more: str) -> None:
        """Two ranks, to the end."""
        self._run(self._two(folder, *more))

    def kill_two(self, folder: Path, *more: str, after: int) -> None:
        """Two ranks, killed once step ``after`` is logged."""
        self._run(self._two(folder, *more), until=lambda: any(row["step"] >= after for row in read_metrics(folder)))

    def stop_two(self, folder: Path, *more: str, after: int) -> None:
        """Two ranks, told to stop by SIGTERM once step ``after`` is logged; they end in order."""
        ranks = self._two(folder, *more)
        try:
            deadline = time.monotonic() + LIMIT
            while not any(row["step"] >= after for row in read_metrics(folder)):
                assert all(rank.process.poll() is None for rank in ranks), _logs(ranks)
                assert time.monotonic() < deadline, _logs(ranks)
                time.sleep(0.02)
            for rank in ranks:
                rank.process.send_signal(signal.SIGTERM)
            codes = [rank.process.wait(LIMIT) for rank in ranks]
        finally:
            _end(ranks)
        assert codes == [PREEMPTED, *[0] * (len(ranks) - 1)], _logs(ranks)

    def fail_on_two(self, folder: Path, *more: str) -> tuple[int, str]:
        """Exit code and output of the process of rank 1, which fails, or of rank 0's, if that has started rank 1."""
        failing = replace(self, module="tests.integration.failing_rank")
        ranks = failing._two(folder, *more, FAILS="1 RuntimeError")
        try:
            code = ranks[-1].process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(_logs(ranks)) from None
        finally:
            _end(ranks)
        return code, ranks[-1].log.read_text()

    def _one(self, folder: Path, *more: str) -> list["Rank"]:
        return [self._rank(folder, *more, "hardware.devices=1", "hardware.nodes=1")]

    def _two(self, folder: Path, *more: str, **environment: str) -> list["Rank"]:
        if torch.cuda.device_count() >= 2:
            return [self._rank(folder, *more, "hardware.devices=2", "hardware.nodes=1", **environment)]
        # two nodes share the GPU: NCCL, told that they are two hosts, does not refuse it and talks over sockets
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started_by_torchrun = {
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"},
            **environment,
            **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "NCCL_SOCKET_IFNAME": "lo"},
        }
        words = [*more, "hardware.devices=1", "hardware.nodes=2"]
        return [
            self._rank(folder, *words, **started_by_torchrun, RANK=rank, GROUP_RANK=rank, NCCL_HOSTID=f"host-{rank}")
            for rank in ("0", "1")
        ]

    def _rank(self, folder: Path, *more: str, **environment: str) -> "Rank":
        overrides = [*COMMON, self.data, *NO_EVALUATION, f"run.dir={folder}", *more]
        words = [sys.executable, "-m", self.module, UNIFIED, *overrides]
        log = folder.with_name(f"{folder.name}.rank{environment.get('RANK', '0')}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            process = subprocess.Popen(
                words, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return Rank(process, log)

    def _run(self, ranks: list["Rank"], *, until: Callable[[], bool] = lambda: False) -> None:
        """Until ``until`` holds or all have ended; then none of them is left, and none has failed."""
        deadline = time.monotonic() + LIMIT
        try:
            while not (stopped := until()) and any(rank.process.poll() is None for rank in ranks):
                assert not any(rank.process.poll() for rank in ranks), _logs(ranks)
                assert time.monotonic() < deadline, _logs(ranks)
                time.sleep(0.05)
        finally:
            _end(ranks)
        assert stopped or not any(rank.process.returncode for rank in ranks), _logs(ranks)


@dataclass(frozen=True)
class Rank:
    """A process, with all that it started in a group of its own, and what it printed."""

    process: "subprocess.Popen[bytes]"
    log: Path


def _end(ranks: list[Rank]) -> None:
    """Kills what is still there of them."""
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.killpg(rank.process.pid, signal.SIGKILL)
        rank.process.wait()


def _logs(ranks: list[Rank]) -> str:
    return "\n".join(f"{rank.log}:\n{rank.log.read_text()[-6000:]}" for rank in ranks)
