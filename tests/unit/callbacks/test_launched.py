"""What becomes of the ranks that Lightning started when rank 0 fails."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import cast

import lightning.pytorch as pl
import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from callbacks.launched import LaunchedRanks
from modules import signals
from pipelines.run.ending import ended_in_order


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


RANK = "from modules import signals; import time; signals.listen(); time.sleep(0.1); print(signals.received())"


def test_a_rank_that_is_told_before_it_listens_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a batch system that signals every process of a job, 20 ms after this one was started."""
    monkeypatch.setattr(signals, "_received", None)
    handlers = {number: signal.getsignal(number) for number in signals.STOP}
    signals.listen()
    launcher, callback = launcher_of(), LaunchedRanks()

    def spawn() -> None:
        launcher.procs = [subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE)]

    monkeypatch.setattr(launcher, "_call_children_scripts", spawn)
    callback.attach(cast(pl.Trainer, SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))))
    try:
        launcher._call_children_scripts()
        [rank] = callback._processes
        time.sleep(0.02)
        rank.send_signal(signal.SIGTERM)
        assert rank.communicate(timeout=60)[0] == b"SIGTERM\n"
        assert (rank.returncode, launcher.procs) == (0, [])
    finally:
        callback._over.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)


LEADS = """
import ctypes, subprocess, sys
from types import SimpleNamespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from callbacks import launched
launched._PATIENCE_SECONDS = 0.2
launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=1, num_nodes=1)
start = lambda code: subprocess.Popen([sys.executable, "-c", code])
def spawn():
    launcher.procs = [start("import time; time.sleep(600)"), start(sys.argv[1])]
launcher._call_children_scripts = spawn
launched.LaunchedRanks().attach(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
launcher._call_children_scripts()
while True:
    ctypes.CDLL(None).sleep(60)  # as in a collective
"""


@pytest.mark.parametrize(
    ("ends", "code"),
    [("raise SystemExit(75)", 75), ("raise SystemExit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_rank_0_ends_with_a_rank_that_has_ended_though_nothing_here_notices(ends: str, code: int) -> None:
    """Its output ends when all of them have."""
    done = subprocess.run([sys.executable, "-c", LEADS, ends], stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"rank 2 has ended with code {code}, and rank 0 ends with it"


class Others:
    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def end(self, grace: float) -> list[int]:
        return self.codes


@pytest.mark.parametrize(
    ("codes", "error", "code"),
    [
        ((0, 75), RuntimeError("connection closed"), 75),
        ((130,), RuntimeError("connection closed"), 130),
        ((2, 75), RuntimeError("connection closed"), 2),
        ((-9, 1), RuntimeError("connection closed"), None),
        ((75,), ValueError("the user's"), None),
    ],
)
def test_a_lost_connection_is_no_reason_where_another_rank_gave_one(
    codes: tuple[int, ...], error: Exception, code: int | None
) -> None:
    closed: list[int] = []
    with pytest.raises(SystemExit if code else type(error)) as end, ended_in_order(Others(*codes), closed.append):
        raise error
    assert getattr(end.value, "code", None) == code
    assert closed == [code or 1]
