"""Training as a few builds and a fit."""

import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from callbacks.launched import LaunchedRanks
from callbacks.tracking import Tracker
from datamodules.mixed import MixedDataModule
from modules import signals
from modules.checkpoints import STATE
from modules.files import code_version
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import ImageTokenizer
from modules.stages import STAGES, StageModule
from pipelines.run.compose import (
    COMPUTE,
    Origin,
    build_callbacks,
    build_data,
    build_model,
    build_stage,
    build_tokenizer,
    build_trainer,
    build_vq,
    check_hardware,
    make_embedded_data,
    weight_fingerprints,
)
from pipelines.run.config import RunConfig, as_dict
from pipelines.run.console import INTERRUPTED, PREEMPTED, USER_ERRORS, say, warn
from pipelines.run.memory import GIB, estimate_memory
from pipelines.run.progress import TrainingProgress
from pipelines.run.ranks import join
from pipelines.run.runfolder import COMPLETE, PROVENANCE, RunFolder, open_run
from pipelines.run.warmup import use_kernel_cache, warm_up

GRACE_SECONDS = 10.0


def fit(config: RunConfig) -> Path:
    """Train what ``config`` describes, from its beginning or from its latest checkpoint; returns the run folder.

    Raises:
        ConfigError, CheckpointError, FileNotFoundError: something is wrong that shows before training starts.
        DataError: a sample cannot be used.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):  # the run speaks for itself
        logging.getLogger(name).setLevel(logging.WARNING)
    leader = getattr(rank_zero_only, "rank", 0) == 0
    ranks = join(timedelta(minutes=config.hardware.timeout_minutes))
    report = say if leader else _silent
    check_hardware(config.hardware, deterministic=config.trainer.deterministic)
    run = ranks.from_rank_0(lambda: _open(config))
    if run.complete:
        report(f"{run.path} is complete ({COMPLETE}); nothing to do")
        return run.path
    config = run.config
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    tokenizer, vq = build_tokenizer(config.model), build_vq(config.model)
    data = build_data(config, tokenizer, vq, report)
    origins: list[Origin] = []
    resumed = run.checkpoint is not None
    model = build_model(config, report=report, resumed=resumed, started_from=origins.append)
    stage = build_stage(config, model)
    for line in [f"{config.name}: stage {config.stage.name}, run folder {run.path}", *stage.report.lines()]:
        report(line)
    if run.checkpoint is not None:
        report(f"resuming from {run.checkpoint}")
    if config.hardware.accelerator == "gpu":
        _prepare_gpu(config, report)
    with run.claimed() if leader else nullcontext():
        _train(run, leader, tokenizer, vq, data, stage, origins)
    return run.path


def _open(config: RunConfig) -> RunFolder:
    run = open_run(config)
    if not run.complete:
        make_embedded_data(run.config)
    return run


def _train(
    run: RunFolder,
    leader: bool,
    tokenizer: TextTokenizer,
    vq: ImageTokenizer | None,
    data: MixedDataModule,
    stage: StageModule,
    origins: list[Origin],
) -> None:
    config = run.config
    run_id, attempt = "", 0
    if leader:
        weights = weight_fingerprints(config, stage.model, resumed=run.checkpoint is not None)
        weights |= {f"init_from/{origin.path}": origin.checkpoint for origin in origins}
        run_id, attempt = run.begin(data.fingerprints(), weights)
    settings = as_dict(config)
    progress = TrainingProgress(config.name, config.trainer.max_steps, stage=config.stage.name)
    about: dict[str, Any] = {"name": config.name, "run_id": run_id, "attempt": attempt, "settings": settings}
    tracker = Tracker(run.path, config.tracking, **about, write=leader, report=say, watch=progress.watch)
    for origin in origins:
        tracker.use_checkpoint(origin.run_id, origin.manifest)
    tracker.log_files("provenance", "provenance", run.path / PROVENANCE)
    facts = {"config": settings, "code": code_version(), "wandb_run_id": run_id, "attempt": attempt}
    launched = LaunchedRanks()
    callbacks = build_callbacks(config, tracker, tokenizer, vq, progress.show, facts, origins)
    trainer = build_trainer(config, [launched, *callbacks])
    code = 1  # unless it comes to an end
    try:
        code = _run(run, leader, trainer, stage, data)
    except SystemExit as stop:  # Lightning's, whose exit code would tell a batch script that all is well
        code = INTERRUPTED
        if leader:
            warn(
                f"stopped at step {trainer.global_step}; start the same command again to go on from the last checkpoint"
            )
        launched.end(GRACE_SECONDS)
        raise SystemExit(INTERRUPTED) from stop
    except Exception as error:
        if 2 in launched.end(GRACE_SECONDS) and not isinstance(error, USER_ERRORS):
            raise SystemExit(2) from error  # a rank has told what the user can mend; that it has ended is no fault
        raise
    finally:
        progress.close()
        tracker.close(code, preempted=code == PREEMPTED)
    if code == PREEMPTED:
        if not leader:
            raise SystemExit(0)  # one exit code speaks; srun and Lightning kill rank 0 for another's
        warn(
            f"told to stop by {signals.received() or 'a signal to another rank'}: saved at step {trainer.global_step}; "
            "start the same command again to go on from there"
        )
        raise SystemExit(PREEMPTED)
    if leader:
        say(f"{config.name}: complete at step {trainer.global_step}; everything is in {run.path}")


def _run(run: RunFolder, leader: bool, trainer: pl.Trainer, stage: StageModule, data: MixedDataModule) -> int:
    """Train to the end, 0, or until told to stop, `PREEMPTED`.

    Raises:
        SystemExit: interrupted.
    """
    with warnings.catch_warnings():
        # Each worker decodes a few images; Lightning would have as many workers as there are cores.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning does not know that the position lies in the data module's state, not in the loader.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and this torch
        trainer.fit(
            stage,
            datamodule=data,
            ckpt_path=run.checkpoint and run.checkpoint / STATE,
            weights_only=bool(run.checkpoint),
        )
    if trainer.interrupted:
        raise SystemExit
    if trainer.should_stop:
        if leader:
            run.pause(trainer.global_step)
        return PREEMPTED
    if trainer.global_step < trainer.max_steps:
        raise RuntimeError(f"training ended at step {trainer.global_step} of {trainer.max_steps} without an error")
    if leader:
        run.finish(trainer.global_step)
    return 0


def _prepare_gpu(config: RunConfig, report: Callable[[str], None]) -> None:
    """Foresee what will not fit, and have the kernels ready before ranks wait for each other."""
    needed, has = estimate_memory(config).needed, torch.cuda.get_device_properties(0).total_memory
    if needed > has:
        warn(
            f"this run will need about {needed / GIB:.0f} GiB on each GPU, which has {has / GIB:.0f}: expect it to run "
            "out of memory. `python -m pipelines.doctor memory` says what takes it, and what would need less"
        )
    counts, tasks = config.data.micro_batch, STAGES[config.stage.name].tasks
    lengths = {"mmu": config.model.mmu_length, "t2i": config.model.t2i_length}
    positions = sum(getattr(counts, task) * lengths[task] for task in tasks)
    warm_up(config.model, positions, COMPUTE[config.trainer.precision], use_kernel_cache(config.hardware), report)


def _silent(_text: str) -> None:
    pass
