"""What becomes of the ranks that Lightning started when rank 0 fails."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import lightning.pytorch as pl
import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from callbacks.launched import LaunchedRanks


def start(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", f"import time; {code}"])


def fail(launcher: object, error: BaseException) -> LaunchedRanks:
    callback = LaunchedRanks()
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    callback.on_exception(cast(pl.Trainer, trainer), pl.LightningModule(), error)
    return callback


def launcher_of(*processes: "subprocess.Popen[bytes]") -> _SubprocessScriptLauncher:
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=1, num_nodes=1)
    launcher.procs = list(processes)
    return launcher


def observe(processes: list["subprocess.Popen[bytes]"]) -> None:
    """What Lightning's observer makes of the processes."""
    observer = _ChildProcessObserver(main_pid=1, child_processes=processes, sleep_period=0)
    observer.start()
    observer.join(10)
    assert not observer.is_alive()


def test_ranks_that_wait_for_a_failed_one_are_ended_and_the_others_left_to_end_themselves() -> None:
    waiting, failing = start("time.sleep(1000)"), start("time.sleep(0.2); raise SystemExit(2)")
    found = fail(launcher_of(failing, waiting), RuntimeError("out of memory")).end(grace=5)
    assert found == [2, -signal.SIGKILL]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_rank_0_is_not_killed_for_the_exit_code_of_a_rank_that_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    killed = list[int]()
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    failed = start("raise SystemExit(2)")
    failed.wait(10)
    launcher = launcher_of(failed)
    fail(launcher, error)
    observe(launcher.procs)
    assert killed == []
    observe([failed])
    assert killed == [1]


def test_without_such_ranks_there_is_nothing_to_end() -> None:
    assert fail(None, RuntimeError("out of memory")).end(grace=0) == []
