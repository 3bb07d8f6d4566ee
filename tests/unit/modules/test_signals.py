import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules import signals


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signals, "_received", None)
    handlers = {number: signal.getsignal(number) for number in signals.STOP}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_raises_a_flag_and_nothing_else(number: signal.Signals) -> None:
    signals.listen()
    assert signals.received() is None
    os.kill(os.getpid(), number)
    assert signals.received() == number.name
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.received() == number.name  # what came first is the reason


def test_a_signal_before_anybody_listens_is_kept_where_it_is_blocked() -> None:
    code = "input('up'); from modules import signals; signals.listen(); print(signals.received())"
    process = subprocess.Popen(
        ["env", "--block-signal=USR1,USR2,TERM", sys.executable, "-uc", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(2) == "up"
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate("\n", timeout=60)
    assert said.split() == ["SIGUSR1"]


def test_workers_do_not_hear_what_is_meant_for_their_parent() -> None:
    signals.ignore()
    for number in signals.STOP:
        os.kill(os.getpid(), number)
    assert signals.received() is None


def test_listening_loads_nothing_heavy() -> None:
    """It is the first thing that a training does."""
    code = "import sys, modules.signals; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


BLOCKED = """
import ctypes
from modules import signals
signals.listen()
with signals.waiting("something"):
    print("up", flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)  # C code; handlers of Python only run between two calls
"""
PATIENT = """
import time
from modules import signals
signals.listen()
with signals.waiting("something", patience=30, tell_after=0.1):
    print("up", flush=True)
    time.sleep(2)
print(signals.received(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_wait_outside_of_python_ends_by_a_signal(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said.splitlines()[-1] == (f"told to stop by {number.name} while waiting for something; start again to go on")


def test_a_wait_that_ends_in_time_is_left_alone_and_keeps_the_signal() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PATIENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    said, told = process.communicate(timeout=60)
    assert (process.returncode, said, told) == (0, "SIGTERM\n", "waiting for something\n")


BUSY = """
import ctypes, sys, threading, time
from modules import signals
def work():
    with signals.finishing():
        started.set()
        time.sleep(2)
        open(sys.argv[1], "w").write("done")
started = threading.Event()
signals.listen()
threading.Thread(target=work).start()
started.wait()
with signals.waiting("something"):
    print("up", flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)
"""


def test_work_that_must_finish_is_finished_first(tmp_path: Path) -> None:
    words = [sys.executable, "-c", BUSY, str(tmp_path / "file")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert (tmp_path / "file").read_text() == "done"


STARTER = """
import ctypes, subprocess, sys
from modules import signals
signals.listen()
rank = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
signals.end_with_us([rank])
with signals.waiting("something"):
    while True:
        ctypes.CDLL(None).sleep(60)
"""


def test_the_processes_that_it_started_end_with_one_that_waits() -> None:
    """Their output ends when all of them have."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_nothing_is_held_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with signals.held():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    signals.listen()
    with signals.held():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(signals.STOP)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
