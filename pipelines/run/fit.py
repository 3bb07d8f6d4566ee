"""Trains a run from its configuration."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from modules.files import GIB
from modules.omnimamba.row_mixer import serves
from modules.run_files import COMPLETE
from modules.stages import STAGES
from pipelines.run.claim import HeldError, claim
from pipelines.run.compose import Parts, build_parts, make_embedded_data
from pipelines.run.config import RunConfig
from pipelines.run.console import say, warn
from pipelines.run.ending import PREEMPTED
from pipelines.run.hardware import COMPUTE, check_hardware, other_arithmetic, use_kernel_cache, use_threads
from pipelines.run.memory import estimate_memory
from pipelines.run.output import outlived_output
from pipelines.run.ranks import find_ranks, refuse_other_launch
from pipelines.run.runfolder import RunFolder, completed_step, open_run, settle
from pipelines.run.training import Training
from pipelines.run.warmup import warm_up


def fit(config: RunConfig) -> Path:
    """Train what ``config`` describes, from the start or from its latest checkpoint, and return the run folder.

    Raises:
        ConfigError, CheckpointError, FileNotFoundError: something was found to be wrong before training started.
        DataError: a sample cannot be used.
    """
    leads = getattr(rank_zero_only, "rank", 0) == 0
    report = say if leads else _silent
    refuse_other_launch(config.hardware.devices, config.hardware.nodes)
    ranks = find_ranks(timedelta(minutes=config.hardware.timeout_minutes))
    check_hardware(config.hardware, deterministic=config.trainer.deterministic)
    with outlived_output(), ExitStack() as held:
        run = RunFolder.from_json(ranks.from_rank_0(lambda: _open(config, held if leads else None).as_json()))
        if run.complete:
            report(f"{run.path} is complete ({COMPLETE}); nothing to do")
            return run.path
        _set_up(run, report)
        parts = build_parts(run.config, report, checkpoint=run.checkpoint)
        _introduce(run, parts, report)
        if run.config.hardware.accelerator == "gpu":
            _prepare_gpu(run.config, report)
        Training.begin(run, parts, leads=leads).to_its_end()
    return run.path


def _open(config: RunConfig, held: ExitStack | None) -> RunFolder:
    """Open the run folder, and hold it until ``held`` is closed. Its checkpoints are read once, while it is held.

    Raises:
        SystemExit: `PREEMPTED`, if another process holds it, so that a batch script tries again later.
    """
    if held is None:
        return open_run(config)
    settle(config)  # before the lock is written into the folder, or it is waited for
    if completed_step(config.folder) == config.trainer.max_steps:
        return open_run(config)  # not held: it may be on a disk that cannot be written
    try:
        held.enter_context(claim(config.folder, config.run.wait_seconds))
    except HeldError as error:
        warn(f"{error}, or choose another run.dir")
        raise SystemExit(PREEMPTED) from error
    run = open_run(config)
    if not run.complete:
        make_embedded_data(run.config)
    return run


def _set_up(run: RunFolder, report: Callable[[str], None]) -> None:
    """Apply the settings of this process."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # the run prints its own messages
        logging.getLogger(name).setLevel(logging.WARNING)
    use_threads(run.config.hardware, run.threads, report)
    if run.config.hardware.accelerator == "cpu" and (difference := other_arithmetic(run.threads, run.cpu_capability)):
        warn(difference)


def _introduce(run: RunFolder, parts: Parts, report: Callable[[str], None]) -> None:
    """Say what will be trained, and from where."""
    config = run.config
    for line in [f"{config.name}: stage {config.stage.name}, run folder {run.path}", *parts.stage.report.lines()]:
        report(line)
    if run.checkpoint is not None:
        report(f"resuming from {run.checkpoint}")


def _prepare_gpu(config: RunConfig, report: Callable[[str], None]) -> None:
    """Warn if the run will not fit, and compile the kernels before ranks wait for each other."""
    needed, has = estimate_memory(config).needed, torch.cuda.get_device_properties(0).total_memory
    if needed > has:
        warn(
            f"this run will need about {needed / GIB:.0f} GiB on each GPU, which has {has / GIB:.0f}: expect it to run "
            "out of memory. `python -m pipelines.doctor memory` says what needs it, and what would need less"
        )
    row = config.data.micro_batch.lengths(config.model, STAGES[config.stage.name].tasks)
    compute, cache = COMPUTE[config.trainer.precision], use_kernel_cache(config.hardware)
    warm_up(config.model, config.hardware, row, compute, cache, report)
    ours = serves(row, config.model, config.hardware.scan, compute, torch.device("cuda"))
    varies = config.hardware.scan == "auto" and config.data.pad == "none"
    report(
        f"the scan of {'full ' if varies else ''}rows runs on "
        + ("our kernels for rows of short sequences" if ours else "mamba_ssm's kernels")
        + ("; without padding, each row's lengths choose" if varies else "")
    )


def _silent(_text: str) -> None:
    pass
