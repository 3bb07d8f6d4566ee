"""The processes that srun or torchrun started together, and how they find each other, also outside of training."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from modules import signals
from modules.exchange import MOST_BYTES
from pipelines.run.ending import FAILED, UNUSABLE, USER_ERRORS
from pipelines.run.overrides import ConfigError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

LAUNCHED = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")
"""torchrun sets the first, Slurm the second."""
_NOT_OURS = "another program may use MASTER_PORT; choose another port"


def cluster() -> "ClusterEnvironment | None":
    """The launcher that started this process together with others; None if Lightning starts them itself.

    Lightning's own requeue stays off: it saves inside a signal handler. The batch script requeues (slurm/lib.sh).

    Raises:
        ConfigError: the Slurm job was asked for in a way that Lightning does not support.
    """
    if not any(name in os.environ for name in LAUNCHED):
        return None  # at once: importing Lightning takes seconds
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not SLURMEnvironment.detect():
        return None
    try:
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:  # the user's mistake in asking for tasks, with the way out
        raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class Ranks:
    """This process among those started with it. Without a store it is alone, or Lightning on rank 0 started it."""

    rank: int = 0
    world_size: int = 1
    store: Store | None = None
    timeout: timedelta = timedelta(minutes=30)

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0, which alone prints and writes."""
        return self.rank == 0

    def from_rank_0(self, make: Callable[[], Any]) -> Any:
        """Call ``make`` on rank 0 and return its result, plain data, on all ranks. So no rank reads a stale directory.

        The result is sent as JSON through the store at MASTER_PORT, which others on the network may reach too.

        Raises:
            SystemExit: on the other ranks, with rank 0's exit code, if ``make`` failed there; rank 0 says why.
            ConfigError: the message is not one that rank 0 sends.
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
        answer = {"code": FAILED, "value": None}
        try:
            answer = {"code": None, "value": make()}
        except SystemExit as stop:
            answer["code"] = stop.code
            raise
        except USER_ERRORS:
            answer["code"] = UNUSABLE
            raise
        finally:
            self.store.set("answer", json.dumps(answer))
            # the store lives in this process, which must not end before all ranks have read the answer
            with signals.waiting("the other ranks, which read what rank 0 opened", tell_after=60):
                self.store.wait([f"answer/{rank}" for rank in range(1, self.world_size)], self.timeout)
        return answer["value"]


def _answer(content: bytes) -> Any:
    """Rank 0's message, checked."""
    if len(content) > MOST_BYTES:
        raise ConfigError(f"rank 0 sent {len(content)} bytes, too many for its message; {_NOT_OURS}")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if (
        not isinstance(answer, dict)
        or answer.keys() != {"code", "value"}
        or type(answer["code"]) not in (int, type(None))
    ):
        raise ConfigError(f"the message from rank 0 is not in its format; {_NOT_OURS}")
    return answer


def refuse_other_launch(devices: int, nodes: int) -> None:
    """Refuse a number of processes that differs from the configuration.

    Raises:
        ConfigError: they differ. Processes that do not know of each other would all be rank 0.
    """
    launcher = cluster()
    if launcher is None:
        return
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    started, wanted = launcher.world_size(), devices * nodes
    asked = f"hardware.devices={devices} and hardware.nodes={nodes} ask for {wanted}"
    if isinstance(launcher, TorchElasticEnvironment):
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if (started, here) != (wanted, devices):
            raise ConfigError(
                f"torchrun started {started} processes, {here} on this node, but {asked}. Set both keys to match "
                "torchrun"
            )
    elif started != wanted:
        raise ConfigError(
            f"the Slurm job has {started} tasks, but {asked}. Set both keys to match the job, and start all its tasks "
            "with srun; to train in one process inside this job, unset SLURM_NTASKS"
        )


def find_ranks(timeout: timedelta) -> Ranks:
    """Find the other ranks before there is a process group; each waits for the others for at most ``timeout``.

    Keep the result alive: the process group uses the same store.
    """
    environment = _environment_of_several()
    if environment is None:
        return Ranks()
    rank, world_size = environment.global_rank(), environment.world_size()
    with signals.waiting(_others(environment)):
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    return Ranks(rank, world_size, store, timeout)


def _others(environment: "ClusterEnvironment") -> str:
    place = f"{environment.main_address}:{environment.main_port}"
    return f"the other {environment.world_size() - 1} of {environment.world_size()} ranks, which meet at {place}"


@contextmanager
def process_group(timeout: timedelta) -> Iterator[Ranks]:
    """Join the other ranks for work outside of training, each with its own GPU; alone if there are none.

    They exchange only plain objects (gloo). Each waits for the others for at most ``timeout``.
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


def _environment_of_several() -> "ClusterEnvironment | None":
    """The launcher of several processes, after it has set MASTER_ADDR and MASTER_PORT; None for a single process."""
    environment = cluster()
    if environment is None or environment.world_size() == 1:
        return None
    _ = environment.main_address, environment.main_port  # sets both variables if they are not set
    return environment
