"""How the verbs speak, and how they end: what a user can mend is a message, anything else keeps its traceback."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from pipelines.run.console import run_verb, say, warn
from pipelines.run.hardware import take_gpu
from pipelines.run.local_rank import local_rank


def failing(error: Exception) -> None:
    raise error


def test_the_home_folder_may_be_written_short_in_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells expand ``~/x``, but not ``--out=~/x`` or ``'~/x'``."""
    monkeypatch.setenv("HOME", "/home/me")
    words = ["verb", "~/runs/a", "--out=~/b.png", "--json", "~", "data.cache=~/c", "a ~ b", "--out=a~/b", "-x"]
    monkeypatch.setattr(sys, "argv", words)
    seen: list[str] = []
    with pytest.raises(SystemExit):
        run_verb(lambda: seen.extend(sys.argv))
    home = ["verb", "/home/me/runs/a", "--out=/home/me/b.png", "--json", "/home/me", "data.cache=~/c", "a ~ b"]
    assert seen == [*home, "--out=a~/b", "-x"]  # a configuration expands its own words


@pytest.mark.parametrize("word", ["run.dir=a\udcff", "--out=\udcc3\udca9t\udcc3\udca9.html"])
def test_a_word_that_is_not_unicode_here_is_a_message(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["verb", "fine.yaml", "été=1", word])
    with pytest.raises(SystemExit) as end:
        run_verb(lambda: failing(AssertionError("it ran")))
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: argument ")
    assert "\\udc" in shown
    assert "set LC_ALL=C.UTF-8 or PYTHONUTF8=1, otherwise rename" in shown


CRASH = """
import mmap, sys
from pipelines.run.console import run_verb

def read_what_is_gone():
    with open(sys.argv[1], "w+b") as file:
        file.write(bytes(3 * mmap.PAGESIZE))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0)
        file.truncate(1)
        mapped[2 * mmap.PAGESIZE]

run_verb(read_what_is_gone)
"""


def test_a_crash_in_native_code_shows_where_it_was(tmp_path: Path) -> None:
    words = [sys.executable, "-c", CRASH, str(tmp_path / "state.ckpt")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr
    assert "in read_what_is_gone" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_message(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_verb(lambda: failing(OSError(number, os.strerror(number), "metrics.jsonl")))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: [Errno {number}] {os.strerror(number)}: 'metrics.jsonl': make room, and start the same command again\n"
    )


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.EROFS, "name another place, which can be written"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.ELOOP, "remove the circle of links"),
        (errno.EMFILE, "allow more open files (ulimit -n)"),
        (errno.ENOTEMPTY, "name another folder, or empty this one"),
    ],
)
def test_what_the_user_can_change_is_a_message(number: int, way_out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_verb(lambda: failing(OSError(number, os.strerror(number), "run")))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: [Errno {number}] {os.strerror(number)}: 'run': {way_out}\n"


def test_another_failure_of_the_system_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_verb(lambda: failing(OSError(errno.EIO, os.strerror(errno.EIO))))
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):\n")
    assert "in failing\n" in shown
    assert shown.endswith("OSError: [Errno 5] Input/output error\n")


RANK = """
import atexit, sys, time
import torch.distributed as dist
from pipelines.run.console import run_verb

def main():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    atexit.register(lambda: (print("waits for the others", flush=True), time.sleep(float(sys.argv[2]))))
    print("trains")
    exec(sys.argv[1])

run_verb(main)
"""


def ended(script: str, *words: str, full: str = "") -> "subprocess.CompletedProcess[str]":
    """``script`` in a process of its own, whose output is buffered; ``full`` is the stream that has no room."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as no_room:
        streams = {name: no_room if name == full else subprocess.PIPE for name in ("stdout", "stderr")}
        command = [sys.executable, "-c", script, *words]
        return subprocess.run(command, **streams, text=True, timeout=60, env=buffered)


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("raise ValueError('the shard is damaged')", 2, "error: the shard is damaged"),
        ("raise RuntimeError('out of memory')", 1, "RuntimeError: out of memory"),
        ("raise SystemExit(130)", 130, ""),
        ("raise SystemExit('no such run')", 1, "no such run\n"),
    ],
)
def test_a_rank_that_fails_does_not_wait_for_the_others(end: str, code: int, message: str) -> None:
    done = ended(RANK, end, "1000")
    assert (done.returncode, done.stdout) == (code, "trains\n")
    assert message in done.stderr


@pytest.mark.parametrize("full", ["stdout", "stderr"])
@pytest.mark.parametrize("end", ["raise ValueError('damaged')", "raise RuntimeError('damaged')", "sys.exit('damaged')"])
def test_nor_does_it_where_its_output_has_no_room(end: str, full: str) -> None:
    done = ended(RANK, end, "1000", full=full)
    assert done.returncode == (2 if "ValueError" in end else 1)
    assert full == "stderr" or "damaged" in done.stderr


@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("raise SystemExit(75)", 75)])
def test_a_rank_that_does_well_leaves_with_the_others(end: str, code: int) -> None:
    done = ended(RANK, end, "0")
    assert (done.returncode, done.stdout) == (code, "trains\nwaits for the others\n"), done.stderr


def test_a_rank_that_does_well_but_could_not_say_it_does_not_end_with_0() -> None:
    done = ended(RANK, "pass", "0", full="stdout")
    assert done.returncode == 120  # Python's own code for it
    assert "No space left on device" in done.stderr


LATE = """
import threading, time
import torch, torch.distributed as dist
from pipelines.run.console import run_verb

dropped = threading.Event()

class Sent(torch.Tensor):
    def __del__(self):
        if threading.current_thread() is not threading.main_thread() and not dropped.is_set():
            dropped.set()
            time.sleep(2)  # meanwhile the main thread goes on to its end

class Dismantled:
    def __del__(self, sleep=time.sleep):
        sleep(4)

def main():
    global kept
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    kept = dist.group.WORLD, Dismantled()
    while not dropped.wait(0.1):  # by gloo's thread; it may also have been done before the main thread let go
        dist.all_reduce(torch.ones(1000).as_subclass(Sent), async_op=True)

run_verb(main)
"""


def test_a_rank_ends_well_though_a_thread_of_gloo_still_has_a_tensor_to_drop() -> None:
    done = ended(LATE)
    assert done.returncode == 0, done.stderr


THREAD = """
import threading, time
import torch.distributed as dist
from pipelines.run.console import run_verb

def main():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    threading.Thread(target=lambda: (time.sleep(1), print("written"))).start()

run_verb(main)
"""


def test_a_rank_that_does_well_waits_for_its_threads() -> None:
    done = ended(THREAD)
    assert (done.returncode, done.stdout) == (0, "written\n"), done.stderr


SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "0"}, 0),
        ({"LOCAL_RANK": "1"}, 1),
        ({"LOCAL_RANK": ""}, 0),
        (SRUN | {"SLURM_LOCALID": "0"}, 0),
        (SRUN | {"SLURM_LOCALID": "3"}, 3),
        (SRUN | {"SLURM_LOCALID": "3", "LOCAL_RANK": "0"}, 0),
        (SRUN, 0),
        (SRUN | {"SLURM_LOCALID": "3", "SLURM_JOB_NAME": "interactive"}, 0),
        ({"SLURM_LOCALID": "3", "SLURM_STEP_ID": "0"}, 0),  # SLURM_NTASKS was unset, to train alone
    ],
)
def test_one_process_of_a_node_warns(
    environment: dict[str, str], number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LOCAL_RANK", *SRUN, "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    warn("the disk is nearly full")
    assert capsys.readouterr().err.count("WARNING: the disk is nearly full\n") == (number == 0)
    gpus: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", gpus.append)
    assert take_gpu() == torch.device("cuda", number)
    assert [gpu.index for gpu in gpus] == [number]
    if "SLURM_LOCALID" in environment and "LOCAL_RANK" not in environment:
        monkeypatch.setattr(SLURMEnvironment, "_validate_srun_used", lambda *_: None)
        assert local_rank() == (SLURMEnvironment(False).local_rank() if SLURMEnvironment.detect() else 0)


def test_standard_output_that_is_full_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OSError, match="No space left on device: 'standard output'"):
            say("a line")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # closing writes the line again
