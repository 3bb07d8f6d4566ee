"""Compiles and tunes a GPU's kernels before ranks wait for each other.

The first Mamba-2 step on a machine spends minutes in Triton. During training, the ranks that are ready would wait for
the others in a collective, whose timeout would end the run. And eight ranks would do the same work eight times. So one
process per node does it first, outside of training, into a cache on disk. The others and later runs read from it.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from modules.locks import locked
from modules.omnimamba.backbone import Backbone
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.row_mixer import Scan, serves
from pipelines.run.hardware import HardwareConfig, take_gpu

LOCK = "omnimamba.lock"


def warm_up(
    model: ModelConfig,
    hardware: HardwareConfig,
    row: Sequence[int],
    compute: torch.dtype,
    cache: Path,
    report: Callable[[str], None],
) -> None:
    """Run two blocks of ``model`` forward and backward over a row of these sequences on this process's GPU."""
    start = time.perf_counter()
    device = take_gpu()
    one_first(cache / LOCK, lambda: run_blocks(model, hardware, row, compute, device))
    torch.cuda.empty_cache()
    report(f"kernels are ready after {time.perf_counter() - start:.0f} s; they are cached in {cache}")


def one_first(lock: Path, work: Callable[[], None]) -> None:
    """Let one of several processes do ``work`` while the others wait; then the others do it, all at once."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            with locked(lock):
                pass  # the first is done
        work()


def run_blocks(
    model: ModelConfig, hardware: HardwareConfig, row: Sequence[int], compute: torch.dtype, device: torch.device
) -> None:
    """Run blocks and final norm forward and backward over one row of random numbers; half of it counts as each task's.

    Two blocks are enough. The first has no residual input and the others do, and Triton tunes both cases. Evaluation
    needs mamba_ssm's scan; training may need ours, too.
    """
    positions = sum(row)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with torch.device(device):
            backbone = Backbone(replace(model, n_layer=2))
            x = torch.randn(1, positions, model.d_model, requires_grad=True)
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        ours = serves([1], model, hardware.scan, compute, device)
        scans: tuple[Scan, ...] = ("mamba_ssm", "rows") if ours else ("mamba_ssm",)
        for scan in scans:
            backbone.choose(scan=scan, projection=hardware.projection, recompute="none")
            with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                segments = (positions // 2, positions - positions // 2)
                hidden = backbone.run_row(x.to(compute), segments, row, compute)
                torch.autograd.backward(hidden.float().sum())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
