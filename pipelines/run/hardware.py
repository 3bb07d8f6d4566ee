"""The hardware of a run: its configuration, and whether this machine has it."""

import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from modules.omnimamba import kernels
from modules.omnimamba.adapters import Projection
from modules.omnimamba.backbone import Recompute
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.row_mixer import Scan, serves
from pipelines.run.local_rank import local_rank
from pipelines.run.overrides import ConfigError

log = logging.getLogger(__name__)

COMPUTE = {"float32": torch.float32, "bf16": torch.bfloat16}
Strategy = Literal["ddp", "zero1", "zero2", "zero3"]
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """The hardware to run on."""

    accelerator: Literal["cpu", "gpu"] = "cpu"
    """What the model runs on."""
    devices: int = 1
    """Devices per node: GPUs, or processes on a CPU."""
    nodes: int = 1
    """Machines; srun or torchrun starts the processes on them."""
    strategy: Strategy = "ddp"
    """How several GPUs share the work: full replicas, or DeepSpeed ZeRO, which shards optimizer states (1), gradients
    (2) and parameters (3). Checkpoints have the same form, so a resume may choose another."""
    recompute: Recompute = "none"
    """What the backward pass computes again instead of keeping it: ``projection``, the output of each block's input
    projection (one product more in each block, for an estimated fourth of stage 2's memory; on a GPU, with the fused
    projection); ``block``, all but the input of each block (a third more work for a fraction of the memory)."""
    scan: Scan = "auto"
    """The scan's kernels when a GPU trains in bf16: mamba_ssm's, or ours for rows of many short sequences. ``auto``
    chooses by the lengths of a row's sequences."""
    projection: Projection = "fused"
    """How a GPU trains input projections: the layer and its adapters in one product and without a stored dropout mask,
    or plain torch."""
    threads: int = 0
    """CPU threads per process; 0: as many as the run had before, or what torch chooses. Other numbers sum in another
    order."""
    timeout_minutes: float = 60.0
    """How long a rank waits for the others before it ends with an error, for example while one of them evaluates."""
    kernel_cache: str = ""
    """Local folder for compiled and tuned GPU kernels; empty: TRITON_CACHE_DIR, else ~/.triton/cache."""

    @property
    def ranks(self) -> int:
        """Number of training processes, one per device."""
        return self.devices * self.nodes

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = [
            f"hardware.{name}={getattr(self, name)} must be at least 1"
            for name in ("devices", "nodes")
            if getattr(self, name) < 1
        ]
        if not self.timeout_minutes > 0:
            found.append(f"hardware.timeout_minutes={self.timeout_minutes} must be above 0")
        if self.threads < 0:
            found.append(f"hardware.threads={self.threads} must be 0 or more")
        return found


def kernel_problems(hardware: HardwareConfig, model: ModelConfig, precision: str) -> list[str]:
    """Kernels that a GPU is asked for and cannot use, each with the way out. A CPU trains by the plain path anyway."""
    if hardware.accelerator != "gpu":
        return []
    found = []
    if hardware.scan == "rows" and not serves([1], model, "rows", COMPUTE[precision], torch.device("cuda")):
        found.append(
            "hardware.scan=rows needs trainer.precision=bf16, model.headdim and model.d_state that are powers of two "
            f"from 16 on, and a multiple of eight heads (there are {model.n_heads}); use hardware.scan=auto"
        )
    if hardware.recompute == "projection":
        needs = {
            "hardware.projection=fused": hardware.projection == "fused",
            "hardware.strategy other than zero3": hardware.strategy != "zero3",
            "model.lora=task": model.lora == "task",
            "a model.d_model that 4 divides": model.d_model % 4 == 0,
        }
        found += [
            f"hardware.recompute=projection needs {need}; otherwise use hardware.recompute=block"
            for need, given in needs.items()
            if not given
        ]
    return found


def check_hardware(config: HardwareConfig, *, deterministic: bool = False) -> None:
    """Refuse hardware that this machine does not have, and load the kernels for a GPU. Call this first.

    Raises:
        ConfigError: this machine has too few GPUs or CPU cores.
        KernelsMissingError: the GPU kernels are not installed.
    """
    if config.accelerator == "gpu" and torch.cuda.device_count() < config.devices:
        raise ConfigError(
            f"hardware.accelerator=gpu with hardware.devices={config.devices}, but this machine "
            f"has {torch.cuda.device_count()} GPUs; use hardware.accelerator=cpu or a machine that has them"
        )
    if config.accelerator == "gpu":
        use_kernel_cache(config)
        if deterministic:
            kernels.choose_deterministic()
        kernels.load()
    cores = os.cpu_count() or 1
    if config.threads > cores:
        raise ConfigError(
            f"hardware.threads={config.threads}, but this machine has {cores} CPU cores; 0 leaves it to torch"
        )


def use_threads(config: HardwareConfig, before: int, report: Callable[[str], None]) -> None:
    """Set the number of threads that torch computes with: the configured one, or on a CPU that of the attempt
    ``before`` (0: there is none), or this process's share of the cores.

    OMP_NUM_THREADS is set too: without it, Lightning sets another number when it starts the ranks.
    """
    kept = 0 if config.threads or config.accelerator != "cpu" else before
    threads = config.threads or kept
    if not threads and config.devices > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // config.devices)
    if threads and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
        if kept:
            report(f"{kept} CPU threads per process, as before (hardware.threads)")
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def other_arithmetic(threads: int, capability: str) -> str:
    """What to say if this process computes otherwise than one with ``threads`` CPU threads and torch's CPU
    ``capability``; "" if not. Unknown ones, 0 and "", are not compared."""
    now = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    pairs = [("CPU threads", threads, now[0]), ("CPU instructions", capability, now[1])]
    differ = [f"{what}: {old} before, {new} now" for what, old, new in pairs if old and old != new]
    return f"the bits may differ from those of a run without this stop ({'; '.join(differ)})" if differ else ""


def use_kernel_cache(config: HardwareConfig) -> Path:
    """Let Triton keep compiled and tuned kernels in one folder, which is created. Triton must not be imported yet.

    A folder of one's own that others can write to is closed to them.

    Raises:
        ConfigError: others own the folder or something in it, and so could change the programs that run here.
    """
    folder = Path(config.kernel_cache or os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    _make_own(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    return folder


def _make_own(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    for found in (folder.lstat(), folder.stat()):  # of a link: the link itself, and what it leads to
        if found.st_uid != os.geteuid():
            raise _not_own(folder, f"belongs to user {found.st_uid}, not to you ({os.geteuid()})")
    if not folder.is_dir():
        raise _not_own(folder, "is a file")
    if folder.stat().st_mode & _OTHERS_WRITE:
        _close(folder.resolve(), folder)
        log.warning("others could write to the kernel cache %s; now only you can (chmod -R go-w)", folder)


def _close(path: Path, folder: Path) -> None:
    """Take from others the right to write to ``path`` and to all that is in it.

    Raises:
        ConfigError: another user has put something there; ``folder`` is the cache.
    """
    with suppress(FileNotFoundError):  # another process of this user tidies up
        found = path.lstat()
        if found.st_uid != os.geteuid():
            raise _not_own(folder, f"has {path.relative_to(folder.resolve())} of user {found.st_uid} in it")
        if stat.S_ISLNK(found.st_mode):
            return
        if found.st_mode & _OTHERS_WRITE:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
        for each in path.iterdir() if stat.S_ISDIR(found.st_mode) else ():  # nothing is added to it any more
            _close(each, folder)


def _not_own(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the kernel cache {folder} {why}. Programs in it run here, so it must be yours alone: remove it, or name "
        "another folder with hardware.kernel_cache or TRITON_CACHE_DIR"
    )


def take_gpu() -> torch.device:
    """Make this process's GPU the current one, which Triton's tuning and plain "cuda" refer to, and return it."""
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device
