"""Which sample comes when: a pure function of (seed, stream, position), the same for any number of ranks and workers.

A stream is an infinite sequence: position p holds sample ``order(epoch)[p % size]`` of epoch ``p // size``, so every
sample comes exactly once per epoch and batches run over epoch boundaries. An optimizer step takes the next
``global_batch`` positions of each stream; ranks and micro-steps share them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from modules.omnimamba.adapters import TASKS, Task
from modules.seeds import keyed_seed


@dataclass(frozen=True)
class SampleKey:
    """A sample's place: task, epoch of its stream, index in its set."""

    task: Task
    epoch: int
    index: int


@dataclass(frozen=True)
class Stream:
    """The order of one task's samples."""

    task: Task
    size: int
    seed: int

    def at(self, position: int, count: int) -> list[SampleKey]:
        """The ``count`` samples from ``position`` on."""
        places = (divmod(p, self.size) for p in range(position, position + count))
        return [
            SampleKey(self.task, epoch, int(_order(self.size, self.seed, self.task, epoch)[i])) for epoch, i in places
        ]


@dataclass(frozen=True)
class StepPlan:
    """Shares the positions of each step out over ranks and micro-steps.

    A step consumes ``accumulation * world_size * micro_batch[task]`` positions of each task's stream; micro-step j on
    rank r takes the r-th slice of the j-th part.
    """

    streams: Mapping[Task, Stream]
    micro_batch: Mapping[Task, int]
    accumulation: int
    world_size: int = 1
    rank: int = 0

    def micro_step(self, positions: Mapping[Task, int], j: int) -> list[SampleKey]:
        """This rank's samples of micro-step ``j`` of the step that starts at ``positions``."""
        keys = []
        for task in self.tasks:
            size = self.micro_batch[task]
            keys += self.streams[task].at(positions[task] + (j * self.world_size + self.rank) * size, size)
        return keys

    def advance(self, positions: Mapping[Task, int], steps: int = 1) -> dict[Task, int]:
        """Positions after ``steps`` more optimizer steps."""
        return {task: positions[task] + steps * self.global_batch(task) for task in self.tasks}

    def global_batch(self, task: Task) -> int:
        """Samples of ``task`` in one optimizer step, over all ranks."""
        return self.accumulation * self.world_size * self.micro_batch[task]

    @property
    def tasks(self) -> list[Task]:
        """Tasks with samples in each micro-batch, in the fixed order."""
        return [task for task in TASKS if task in self.streams]


@lru_cache(maxsize=4)
def _order(size: int, seed: int, task: Task, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation by sorting hashes: an own hash, because libraries change their generators between versions."""
    key = np.uint64(keyed_seed(seed, "order", task, epoch))
    return np.argsort(_splitmix64(np.arange(size, dtype=np.uint64) ^ key), kind="stable")


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 64-bit numbers that scatters neighbours."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
