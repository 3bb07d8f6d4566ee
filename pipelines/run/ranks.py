"""The processes of one run that srun or torchrun started together, before they have a process group."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

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
    size: int = 1
    store: Store | None = None
    timeout: timedelta = timedelta(minutes=30)

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
            self.store.wait([f"answer/{rank}" for rank in range(1, self.size)], self.timeout)
        return answer[0]


def join(timeout: timedelta) -> Ranks:
    """Find the others; ``timeout`` is the longest that one waits for another.

    Keep what this returns: the process group finds its store in the same place.
    """
    environment = cluster()
    if environment is None or environment.world_size() == 1:
        return Ranks()
    _ = environment.main_address, environment.main_port  # sets MASTER_ADDR and MASTER_PORT where nobody has
    rank, size = environment.global_rank(), environment.world_size()
    store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    return Ranks(rank, size, store, timeout)
