"""Which sample comes when: a pure function of (seed, stream, position), the same for any number of ranks and workers.

A stream is an infinite sequence: position p holds sample ``order(epoch)[p % size]`` of epoch ``p // size``. So every
sample comes exactly once per epoch, and batches may cross epoch boundaries. An optimizer step consumes the next
``global_batch`` positions of each stream, split over ranks and micro-steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modules.omnimamba.config import TASKS, Task
from modules.seeds import keyed_hashes, keyed_seed


class Places(NamedTuple):
    """Which samples: the epoch of their stream and their index in the shard set, int64 (B,) each."""

    epochs: NDArray[np.int64]
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """The order of one task's samples."""

    task: Task
    size: int
    seed: int

    def at(self, position: int, count: int) -> Places:
        """The ``count`` samples from ``position`` on."""
        epochs, ranks = np.divmod(np.arange(position, position + count), self.size)
        indices = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            indices[now] = _order(self.size, self.seed, self.task, epoch)[ranks[now]]
        return Places(epochs, indices)


@dataclass(frozen=True)
class StepPlan:
    """Splits the positions of each step over ranks and micro-steps.

    A step consumes ``accumulation * world_size * micro_batch[task]`` positions of each task's stream. Micro-step j on
    rank r gets the r-th slice of the j-th part.
    """

    streams: Mapping[Task, Stream]
    micro_batch: Mapping[Task, int]
    accumulation: int
    world_size: int = 1
    rank: int = 0

    def micro_step(self, positions: Mapping[Task, int], j: int) -> dict[Task, Places]:
        """This rank's samples of micro-step ``j`` of the step that starts at ``positions``."""
        share = j * self.world_size + self.rank
        sizes = {task: self.micro_batch[task] for task in self.tasks}
        return {task: self.streams[task].at(positions[task] + share * size, size) for task, size in sizes.items()}

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
def _order(size: int, seed: int, task: Task, epoch: int) -> NDArray[np.int64]:
    """A permutation, made by sorting hashes."""
    return np.argsort(keyed_hashes(keyed_seed(seed, "order", task, epoch), np.arange(size)), kind="stable")
