"""How the processes of a launcher find each other, and what they believe of each other."""

import json
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import TCPStore

from pipelines.run import ranks
from pipelines.run.overrides import ConfigError
from pipelines.run.ranks import Ranks, refuse_other_launch

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}
SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "message"),
    [
        (TORCHRUN | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 2, 1, ""),
        (TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 2, 2, ""),
        (TORCHRUN | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 1, 1, "torchrun started 2 processes, 2 on this node"),
        (TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 2, 2, "torchrun started 4 processes, 4 on this node"),
        (SLURM | {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}, 4, 2, ""),
        (SLURM | {"SLURM_NTASKS": "2"}, 1, 1, "you set `--ntasks=2`"),
        (
            SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"},
            1,
            1,
            "the Slurm job has 2 tasks, but hardware.devices=1 and hardware.nodes=1",
        ),
        ({}, 8, 4, ""),
    ],
)
def test_a_launcher_that_the_configuration_contradicts_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: int, nodes: int, message: str
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not message:
        refuse_other_launch(devices, nodes)
        return
    with pytest.raises(ConfigError) as error:
        refuse_other_launch(devices, nodes)
    assert message.lower() in str(error.value).lower()


def store() -> TCPStore:
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))


def test_the_value_of_rank_0_arrives_as_plain_data() -> None:
    shared = store()
    shared.set("answer/1", "read")  # as rank 1 does when it has read
    value: dict[str, Any] = {"path": "/a b", "steps": [1, None]}
    assert Ranks(0, 2, shared, timedelta(seconds=5)).from_rank_0(lambda: value) == value
    assert Ranks(1, 2, shared).from_rank_0(lambda: pytest.fail("called on rank 1")) == value


@pytest.mark.parametrize(("error", "code"), [(SystemExit(75), 75), (ConfigError("no"), 2), (OSError(5, "EIO"), 1)])
def test_a_failure_of_rank_0_ends_the_others_with_its_code(error: BaseException, code: int) -> None:
    shared = store()
    shared.set("answer/1", "read")

    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        Ranks(0, 2, shared, timedelta(seconds=5)).from_rank_0(fails)
    with pytest.raises(SystemExit) as end:
        Ranks(1, 2, shared, timedelta(seconds=5)).from_rank_0(fails)
    assert end.value.code == code


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04K\x01.",  # a pickle
        b"[" * 100_000,
        b'{"code": null}',
        b'{"code": "0", "value": 1}',
        json.dumps({"code": True, "value": 1}).encode(),
    ],
)
def test_a_message_that_rank_0_did_not_write_is_refused(content: bytes) -> None:
    shared = store()
    shared.set("answer", content)
    with pytest.raises(ConfigError, match="the message from rank 0 is not in its format; another program may use MAST"):
        Ranks(1, 2, shared).from_rank_0(lambda: None)


def test_a_message_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = store()
    shared.set("answer", b"x" * 101)
    monkeypatch.setattr(ranks, "MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="rank 0 sent 101 bytes, too many for its message; another program may use"):
        Ranks(1, 2, shared).from_rank_0(lambda: None)


ALONE = """
from datetime import timedelta
from modules import signals
from pipelines.run.ranks import find_ranks
signals.listen()
print("up", flush=True)
find_ranks(timedelta(minutes=10))
"""


def test_a_rank_that_waits_for_others_says_so_and_ends_by_a_signal() -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | TORCHRUN | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "up\n"
    said = next(line for line in process.stderr if "waiting for" in line)
    assert said == f"waiting for the other 1 of 2 ranks, which meet at localhost:{port}\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
