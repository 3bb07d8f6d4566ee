"""The processes that srun or torchrun started together: how they find each other, in training and outside of it."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from modules import signals
from modules.exchange import MOST_BYTES
from pipelines.run.ending import UNUSABLE
from pipelines.run.overrides import ConfigError

_NOT_OURS = "another program may use MASTER_PORT; choose another port"


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

    def from_rank_0(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns on rank 0, plain data, on all ranks. They wait, and do not read a stale directory.

        It travels as JSON through the store of MASTER_PORT, which others on the network may reach too.

        Raises:
            SystemExit: on the other ranks, with rank 0's exit code, if ``make`` failed there; rank 0 says why.
            ConfigError: what arrives is not what rank 0 sends.
        """
        if self.store is None:
            return make()
        if self.rank:
            with signals.waiting("rank 0, which opens the run folder", tell_after=60):
                answer = _answer(self.store.get("answer"))
            self.store.set(f"answer/{self.rank}", "read")
            if answer["code"] is not None:
                raise SystemExit(answer["code"])
            return answer["value"]
        answer = {"code": UNUSABLE, "value": None}
        try:
            answer = {"code": None, "value": make()}
        except SystemExit as stop:
            answer["code"] = stop.code
            raise
        finally:
            self.store.set("answer", json.dumps(answer))
            # the store lives in this process, which may end as soon as it has its answer
            with signals.waiting("the other ranks, which take over what rank 0 has opened", tell_after=60):
                self.store.wait([f"answer/{rank}" for rank in range(1, self.world_size)], self.timeout)
        return answer["value"]


def _answer(content: bytes) -> Any:
    """Rank 0's message, checked."""
    if len(content) > MOST_BYTES:
        raise ConfigError(f"rank 0 sends {len(content)} bytes; {_NOT_OURS}")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if (
        not isinstance(answer, dict)
        or answer.keys() != {"code", "value"}
        or type(answer["code"]) not in (int, type(None))
    ):
        raise ConfigError(f"what arrives from rank 0 is not its message; {_NOT_OURS}")
    return answer


def refuse_other_launch(devices: int, nodes: int) -> None:
    """Compare what srun or torchrun started with what the configuration says.

    Raises:
        ConfigError: they differ. Processes that do not know of each other would all be rank 0.
    """
    launcher = cluster()
    if launcher is None:
        return
    started, asked = (
        launcher.world_size(),
        f"hardware.devices={devices} and hardware.nodes={nodes} ask for {devices * nodes}",
    )
    if isinstance(launcher, TorchElasticEnvironment):
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if (started, here) != (devices * nodes, devices):
            raise ConfigError(
                f"torchrun started {started} processes, {here} on this node, but {asked}. Set the two keys to what "
                "torchrun starts"
            )
    elif started != devices * nodes:
        raise ConfigError(
            f"the Slurm job has {started} tasks, but {asked}. Set the two keys to the job's, and start all its tasks "
            "by srun; to train in one process inside this job, unset SLURM_NTASKS"
        )


def find_ranks(timeout: timedelta) -> Ranks:
    """Find the others before there is a process group; ``timeout`` is the longest that one waits for another.

    Keep what this returns: the process group finds its store in the same place.
    """
    environment = _environment_of_several()
    if environment is None:
        return Ranks()
    rank, world_size = environment.global_rank(), environment.world_size()
    with signals.waiting(_others(environment)):
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    return Ranks(rank, world_size, store, timeout)


def _others(environment: ClusterEnvironment) -> str:
    place = f"{environment.main_address}:{environment.main_port}"
    return f"the other {environment.world_size() - 1} of {environment.world_size()} ranks, which meet at {place}"


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
    with signals.waiting(_others(environment)):
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
