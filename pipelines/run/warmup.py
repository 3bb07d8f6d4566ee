"""Compiles and tunes a GPU's kernels before ranks wait for each other.

The first Mamba-2 step on a machine spends minutes in Triton. During training, the ranks that are ready would wait for
the others in a collective, whose timeout would end the run. And eight ranks would do the same work eight times. So one
process per node does it first, outside of training, into a cache on disk. The others and later runs read from it.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from modules.locks import locked
from modules.omnimamba.backbone import Backbone
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.row_mixer import Scan
from pipelines.run.hardware import take_gpu

LOCK = "omnimamba.lock"


def warm_up(
    model: ModelConfig, positions: int, compute: torch.dtype, cache: Path, report: Callable[[str], None]
) -> None:
    """Run two blocks of ``model`` forward and backward over a row of ``positions`` on this process's GPU."""
    start = time.perf_counter()
    device = take_gpu()
    one_first(cache / LOCK, lambda: run_blocks(model, positions, compute, device))
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


def run_blocks(model: ModelConfig, positions: int, compute: torch.dtype, device: torch.device) -> None:
    """Run blocks and final norm forward and backward over one row of random numbers that holds both tasks.

    Two blocks are enough. The first has no residual input and the others do, and Triton tunes both cases. Which scan a
    later row takes depends on its sequences, so both are made ready.
    """
    half = (positions // 2, positions - positions // 2)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        backbone = Backbone(replace(model, n_layer=2))
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        scans: tuple[Scan, ...] = ("mamba_ssm", "rows") if device.type == "cuda" else ("mamba_ssm",)
        for backbone.scan in scans:
            x = torch.randn(1, positions, model.d_model, requires_grad=True)
            with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                hidden = backbone.run_row(x.to(compute), half, half, compute)
                torch.autograd.backward(hidden.float().sum())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
