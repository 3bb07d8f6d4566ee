"""Several processes that share one piece of work outside of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipelines.run.ranks import cluster


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is."""

    rank: int = 0
    world_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0


@contextmanager
def joined(timeout: timedelta) -> Iterator[Place]:
    """Join the processes that torchrun or srun started beside this one, each with a GPU of its own; alone otherwise.

    They exchange plain objects only (gloo); ``timeout`` is the longest that one waits for another.
    """
    environment = cluster()
    if environment is None or environment.world_size() == 1:
        yield Place()
        return
    place = Place(environment.global_rank(), environment.world_size())
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank() % torch.cuda.device_count())
    _ = environment.main_address, environment.main_port  # sets MASTER_ADDR and MASTER_PORT where nobody has
    dist.init_process_group("gloo", rank=place.rank, world_size=place.world_size, timeout=timeout)
    try:
        yield place
    finally:
        dist.destroy_process_group()
