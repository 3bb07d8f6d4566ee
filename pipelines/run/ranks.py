"""The processes that srun or torchrun started together: how they find each other, in training and outside of it."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


def cluster() -> ClusterEnvironment | None:
    """What started this process together with others; None where Lightning starts them itself.

    Lightning's own requeue stays off: it saves inside a signal handler. The batch script requeues (slurm/lib.sh).
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None


@dataclass(frozen=True)
class Ranks:
    """This process among those started with it. Without a store it is alone, or was started by rank 0's Lightning."""

    rank: int = 0
    world_size: int = 1
    store: Store | None = None
    timeout: timedelta = timedelta(minutes=30)

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def from_rank_0(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, on all ranks: they wait, and see what rank 0 saw and not a stale directory.

        Raises:
            SystemExit: on the other ranks, where ``make`` failed on rank 0, which tells why.
        """
        if self.store is None:
            return make()
        if self.rank:
            answer: list[T] = pickle.loads(self.store.get("answer"))
            self.store.set(f"answer/{self.rank}", "read")
            if not answer:
                raise SystemExit(2)
            return answer[0]
        answer = []
        try:
            answer.append(make())
        finally:
            self.store.set("answer", pickle.dumps(answer))  # type: ignore[arg-type]  # bytes are taken too
            # the store lives in this process, which may end as soon as it has its answer
            self.store.wait([f"answer/{rank}" for rank in range(1, self.world_size)], self.timeout)
        return answer[0]


def find_ranks(timeout: timedelta) -> Ranks:
    """Find the others before there is a process group; ``timeout`` is the longest that one waits for another.

    Keep what this returns: the process group finds its store in the same place.
    """
    environment = _environment_of_several()
    if environment is None:
        return Ranks()
    rank, world_size = environment.global_rank(), environment.world_size()
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    return Ranks(rank, world_size, store, timeout)


@contextmanager
def process_group(timeout: timedelta) -> Iterator[Ranks]:
    """Join the others for work outside of training, each with a GPU of its own; alone where there are none.

    They exchange plain objects only (gloo); ``timeout`` is the longest that one waits for another.
    """
    environment = _environment_of_several()
    if environment is None:
        yield Ranks()
        return
    ranks = Ranks(environment.global_rank(), environment.world_size())
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank() % torch.cuda.device_count())
    dist.init_process_group("gloo", rank=ranks.rank, world_size=ranks.world_size, timeout=timeout)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _environment_of_several() -> ClusterEnvironment | None:
    """What started this process and others, once MASTER_ADDR and MASTER_PORT are set; None for a single one."""
    environment = cluster()
    if environment is None or environment.world_size() == 1:
        return None
    _ = environment.main_address, environment.main_port  # sets both where nobody has
    return environment
