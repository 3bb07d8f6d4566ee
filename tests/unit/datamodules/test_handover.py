import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from datamodules.datasets import DataError
from datamodules.handover import BatchLoader, hand_over, start_worker
from tests.disks import mounted


class Batches(Dataset[Any]):
    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        return {"ids": torch.full((100_000,), index), "more": [(torch.ones(3),)], "keys": ["a"]}


def loader(data: Batches, **more: Any) -> BatchLoader:
    return BatchLoader(data, batch_size=None, num_workers=1, collate_fn=hand_over, worker_init_fn=start_worker, **more)


def test_micro_batches_come_in_shared_memory() -> None:
    batches = list(loader(Batches()))
    assert [batch["ids"].tolist() for batch in batches] == [[index] * 100_000 for index in range(4)]
    assert all(batch["ids"].is_shared() and batch["more"][0][0].is_shared() for batch in batches)


def test_without_workers_nothing_is_moved() -> None:
    [batch, *_] = BatchLoader(Batches(), batch_size=None, collate_fn=hand_over)
    assert not batch["ids"].is_shared()


def test_workers_that_make_nothing_end_training_with_the_reason() -> None:
    with pytest.raises(DataError, match=r"the data workers made no micro-batch for 0\.01 minutes \(guards.hang_min"):
        list(loader(Batches(seconds=60), timeout=0.6))


FULL = """
import os, sys
sys.path.insert(0, os.getcwd())
from tests.unit.datamodules.test_handover import Batches, loader
list(loader(Batches()))
"""


def test_no_room_in_shared_memory_is_a_message(tmp_path: Path) -> None:
    with mounted(tmp_path / "probe", 4096):
        pass  # or the test is skipped here
    words = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k none /dev/shm; exec "$@"', "sh"]
    done = subprocess.run([*words, sys.executable, "-c", FULL], capture_output=True, text=True, timeout=120)
    assert "DataError: a data worker cannot hand over a micro-batch: unable to " in done.stderr
    assert "or set data.num_workers=0" in done.stderr


WAITS = """
import os, sys
sys.path.insert(0, os.getcwd())
from datamodules import handover
from modules import signals
from tests.unit.datamodules.test_handover import Batches, loader
handover.PATIENCE_SECONDS = 0.5
signals.listen()
batches = iter(loader(Batches(seconds=600)))
print("up", flush=True)
next(batches)
"""


def test_a_wait_for_a_micro_batch_ends_by_a_signal() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "told to stop by SIGTERM while waiting for a micro-batch from the data workers" in said
