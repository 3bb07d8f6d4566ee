"""Builds Lightning's Trainer for a run, and its callbacks."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from callbacks.bad_samples import BadSampleLog
from callbacks.checkpointing import Checkpointing
from callbacks.evaluation import EvaluationCallback
from callbacks.guards import FiniteGuard, GradientGuard, HangGuard
from callbacks.measures.measure import EvaluationContext
from callbacks.measures.registry import build_pairs, schedule_of
from callbacks.norms import PartNorms
from callbacks.preemption import Preemption
from callbacks.resident import MemoryGuard
from callbacks.samples_log import SampleLog
from callbacks.steps import CommitPosition
from callbacks.throughput import RestartClock, Show, Throughput
from callbacks.tracking import Tracker
from modules.checkpoints import MANIFEST, checkpoint_id, weights_fingerprint
from modules.files import step_name
from modules.flops import peak_tflops
from modules.run_files import CHECKPOINTS
from modules.stage_modules import StageModule
from modules.stages import STAGES
from modules.zero import ZeroStrategy
from pipelines.run.compose import Parts
from pipelines.run.config import RunConfig
from pipelines.run.ranks import cluster
from pipelines.run.strategies import build_strategy


def build_callbacks(
    config: RunConfig,
    tracker: Tracker,
    parts: Parts,
    show: Show,
    facts: dict[str, Any],
) -> list[pl.Callback]:
    """The callbacks of a run. Their order matters: guard, commit, log, save, stop, evaluate.

    A step is saved before it is evaluated, so an interrupted evaluation never costs a training step. ``facts`` are
    written into every checkpoint.
    """
    log_every = config.trainer.log_every_n_steps
    finite = FiniteGuard(config.guards, tracker, config.folder)
    memory = MemoryGuard(config.guards.memory_share)
    guards = [HangGuard(config.guards.hang_minutes), GradientGuard(), finite]

    norms = PartNorms(log_every)
    every = (log_every, config.checkpoint.every_n_steps)
    bad = BadSampleLog(config.folder, tracker, limit=config.data.bad_limit, every=every)
    tasks = STAGES[config.stage.name].tasks

    def beside() -> dict[str, float]:
        counts = {f"data/bad_samples_{task}": bad.counts[task] for task in tasks}
        return {"train/grad_norm": finite.norm, "system/resident_gib": memory.look(), **norms.look(), **counts}

    def saved(checkpoint: Path) -> None:
        started_from = [f"{origin.run_id} {origin.checkpoint}" for origin in parts.origins]
        tracker.log_checkpoint(checkpoint.name, (checkpoint / MANIFEST).read_text(encoding="utf-8"), started_from)

    saving = Checkpointing(config.checkpoint, config.folder / CHECKPOINTS, facts, saved)
    throughput = Throughput(tracker, config.model, log_every, show, beside, _peak(config))
    callbacks: list[pl.Callback] = [*guards, CommitPosition(), bad, norms, throughput]
    if config.data.log_samples:
        callbacks.append(SampleLog(config.folder, tracker.attempt))
    callbacks.append(saving)
    callbacks.append(Preemption(timedelta(minutes=config.hardware.timeout_minutes)))
    context = _evaluation_context(config, parts, saving)
    callbacks += [
        EvaluationCallback(measure, tracker, schedule_of(config.evaluation, measure), context, mini=mini)
        for measure, mini in build_pairs(config.evaluation)
    ]
    callbacks.append(RestartClock(throughput))
    return callbacks


def _evaluation_context(
    config: RunConfig, parts: Parts, saving: Checkpointing
) -> Callable[[pl.Trainer, pl.LightningModule], EvaluationContext]:
    """A function that makes the context of an evaluation when one is due."""

    def context(trainer: pl.Trainer, module: pl.LightningModule) -> EvaluationContext:
        assert isinstance(module, StageModule)
        strategy = trainer.strategy
        saving.settle(trainer)  # records name the checkpoint they were made from, so it must be written
        model = strategy.gathered(module.model) if isinstance(strategy, ZeroStrategy) else module.model
        return EvaluationContext(
            model=model,
            weights=weights_fingerprint(model),
            checkpoint=checkpoint_id(config.folder / CHECKPOINTS / step_name(trainer.global_step)),
            tokenizer=parts.tokenizer,
            vq=parts.vq,
            template=config.data.template,
            device=strategy.root_device,
            step=trainer.global_step,
            folder=config.folder,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            batch_size=config.evaluation.batch_size,
            caption_dropout=config.data.caption_dropout,
            validation=lambda: parts.validation,
        )

    return context


def _peak(config: RunConfig) -> float | None:
    """Peak TFLOP/s of this run's GPU, if known; only for bf16, because the data sheets' numbers are for bf16."""
    if config.hardware.accelerator != "gpu" or config.trainer.precision != "bf16":
        return None
    return peak_tflops(torch.cuda.get_device_name())


def build_trainer(config: RunConfig, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer, with data order, logging and saving left to this project."""
    hardware = config.hardware
    environment = cluster()
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=build_strategy(hardware),
        plugins=[environment] if environment else None,
        default_root_dir=config.folder,  # under Slurm, Lightning resumes from any hpc_ckpt_* in it
        deterministic=config.trainer.deterministic or None,
        max_steps=config.trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.data.accumulation(STAGES[config.stage.name].tasks, hardware.ranks),
        gradient_clip_val=config.optim.clip_grad_norm or None,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
