"""Builds the parts of a run out of its configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from callbacks.bad_samples import BadSampleLog
from callbacks.checkpointing import Checkpointing
from callbacks.evaluation import EvaluationCallback
from callbacks.guards import FiniteGuard, GradientGuard, HangGuard, MemoryGuard
from callbacks.measures.measure import EvaluationContext
from callbacks.measures.registry import build_pairs
from callbacks.norms import PartNorms
from callbacks.preemption import Preemption
from callbacks.samples_log import SampleLog
from callbacks.steps import CommitPosition
from callbacks.throughput import RestartClock, Show, Throughput
from callbacks.tracking import Tracker
from datamodules.mixed import MixedDataModule
from datamodules.scenes.prepare import prepare_scenes
from modules.checkpoints import MANIFEST, StageResult, checkpoint_id, load_results, weights_fingerprint
from modules.files import sha256, step_name
from modules.flops import peak_tflops
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import ImageTokenizer, load_image_tokenizer
from modules.pretrained import load_pretrained
from modules.run_files import CHECKPOINTS, COMPLETE, CONFIG
from modules.stages import STAGES, StageModule
from modules.weight_files import weight_files
from modules.zero import ZeroStrategy
from pipelines.run.config import RunConfig
from pipelines.run.console import warn
from pipelines.run.hardware import COMPUTE, build_strategy
from pipelines.run.overrides import ConfigError
from pipelines.run.ranks import cluster


class Origin(NamedTuple):
    """A checkpoint that a run starts from: where it was named, name and hash, W&B run, and its manifest."""

    path: str
    checkpoint: str
    run_id: str
    manifest: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run consists of, before anything watches it."""

    tokenizer: TextTokenizer
    vq: ImageTokenizer | None
    data: MixedDataModule
    stage: StageModule
    origins: tuple[Origin, ...]
    """What its weights started from."""


def build_parts(config: RunConfig, report: Callable[[str], None], *, resumed: bool) -> Parts:
    """Tokenizers, data and the stage with its model, in the order in which their errors are wanted."""
    tokenizer, vq = build_tokenizer(config.model), build_vq(config.model)
    data = build_data(config, tokenizer, vq, report)
    origins: list[Origin] = []
    model = build_model(config, report=report, resumed=resumed, started_from=origins.append)
    stage = build_stage(config, model)
    return Parts(tokenizer=tokenizer, vq=vq, data=data, stage=stage, origins=tuple(origins))


def make_embedded_data(config: RunConfig) -> None:
    """Draw and prepare the scenes that the configuration asks for, if they are not there yet."""
    if config.scenes is not None:
        prepare_scenes(config.scenes)


def build_tokenizer(model: ModelConfig) -> TextTokenizer:
    """The text tokenizer.

    Raises:
        ConfigError: it has more ids than the model has embedding rows.
    """
    tokenizer = TextTokenizer(model.tokenizer)
    if len(tokenizer) > model.vocab_size:
        raise ConfigError(
            f"{model.tokenizer} has {len(tokenizer)} ids with the special tokens, but model.vocab_size="
            f"{model.vocab_size}; set it to {-(-len(tokenizer) // 16) * 16}"
        )
    return tokenizer


def build_vq(model: ModelConfig) -> ImageTokenizer | None:
    """The VQ tokenizer, if one is named.

    Raises:
        ConfigError: it is not there, or its codes are not those of the model.
    """
    if not model.vq:
        return None
    if not Path(model.vq).exists():
        raise ConfigError(
            f"model.vq={model.vq} does not exist; name the VQ tokenizer's file, or set model.vq='' where no picture is "
            "drawn"
        )
    vq = load_image_tokenizer(Path(model.vq))
    for key, have, want in (
        ("image_vocab", model.image_vocab, vq.codebook_size),
        ("image_tokens", model.image_tokens, vq.tokens_per_image),
    ):
        if have != want:
            raise ConfigError(f"model.{key}={have}, but the VQ tokenizer {model.vq} has {want}; they must be equal")
    return vq


def build_model(
    config: RunConfig,
    *,
    report: Callable[[str], None],
    resumed: bool = False,
    started_from: Callable[[Origin], None] = lambda origin: None,
) -> OmniMamba:
    """The model with its initial weights: by seed and name, then third-party ones, then those of earlier stages.

    Where a checkpoint is resumed it brings all weights, and what they started from need not be there any more.
    ``started_from`` is told of each earlier stage's checkpoint.
    """
    model = OmniMamba(config.model)
    model.compute = COMPUTE[config.trainer.precision]
    model.backbone.recompute = config.hardware.recompute
    if resumed:
        return model
    if "mmu" in STAGES[config.stage.name].tasks:
        for line in model.vision.weights_report():
            report(line)
    initialise(model, config.model.init_seed)
    if config.pretrained:
        for line in load_pretrained(model, Path(config.pretrained)):
            report(line)
    if config.init_from:
        for path in config.init_from:
            if (Path(path) / CONFIG).is_file() and not (Path(path) / COMPLETE).is_file():
                warn(f"init_from: {path} is not complete; its latest checkpoint is taken as it is")
        results = [StageResult.read(Path(path), warn) for path in config.init_from]
        for line in load_results(model, results).lines():
            report(line)
        for result in results:
            assert result.checkpoint is not None
            manifest = (result.checkpoint / MANIFEST).read_text()
            started_from(Origin(result.origin, checkpoint_id(result.checkpoint), result.run_id, manifest))
    return model


def weight_fingerprints(config: RunConfig, model: OmniMamba, *, resumed: bool) -> dict[str, str]:
    """sha256 (hex) of the weights from elsewhere that a run uses: the vision encoder's and, at its start, the
    pre-trained ones. Files of gigabytes are read for it: once, by one process."""
    found = {}
    if "mmu" in STAGES[config.stage.name].tasks and model.vision.fingerprint:
        found["vision"] = model.vision.fingerprint
    if config.pretrained and not resumed:
        found |= {f"pretrained/{file.name}": sha256(file) for file in weight_files(Path(config.pretrained))}
    return found


def build_stage(config: RunConfig, model: OmniMamba) -> StageModule:
    """The stage's LightningModule."""
    stage = STAGES[config.stage.name]
    return stage(model, config.stage, config.optim, max_steps=config.trainer.max_steps, seed=config.seed)


def build_data(
    config: RunConfig,
    tokenizer: TextTokenizer,
    vq: ImageTokenizer | None,
    report: Callable[[str], None] = lambda _: None,
) -> MixedDataModule:
    """The data module of the stage's tasks.

    Raises:
        ConfigError: the T2I shards hold codes of another VQ tokenizer than ``vq``.
    """
    tasks = STAGES[config.stage.name].tasks
    data = MixedDataModule(config.data, config.model, tokenizer, tasks=tasks, seed=config.seed, report=report)
    if "t2i" in data.samples and vq is not None:
        made_with = data.samples["t2i"].shards.meta.get("vq", {})
        if made_with.get("fingerprint") != vq.fingerprint:
            raise ConfigError(
                f"the codes in {config.data.t2i} were made with VQ tokenizer {made_with.get('kind')} "
                f"({made_with.get('fingerprint')}), but model.vq={config.model.vq} is {vq.name} ({vq.fingerprint}): "
                "its pictures would be noise. Name the tokenizer that prepared the shards"
            )
    return data


def build_callbacks(
    config: RunConfig,
    tracker: Tracker,
    parts: Parts,
    show: Show,
    facts: dict[str, Any],
) -> list[pl.Callback]:
    """What watches the run, in the order that matters: guard, commit, log, save, stop, evaluate.

    Saved before it is evaluated, a step is never trained again because its evaluation was cut short. ``facts`` go into
    every checkpoint.
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
        tracker.log_checkpoint(checkpoint.name, (checkpoint / MANIFEST).read_text(), started_from)

    saving = Checkpointing(config.checkpoint, config.folder / CHECKPOINTS, facts, saved)
    throughput = Throughput(tracker, config.model, log_every, show, beside, _peak(config))
    callbacks: list[pl.Callback] = [*guards, CommitPosition(), bad, norms, throughput]
    if config.data.log_samples:
        callbacks.append(SampleLog(config.folder, tracker.attempt))
    callbacks.append(saving)
    callbacks.append(Preemption(timedelta(minutes=config.hardware.timeout_minutes)))
    context = _evaluation_context(config, parts, saving)
    callbacks += [
        EvaluationCallback(measure, tracker, config.evaluation, context, mini=mini)
        for measure, mini in build_pairs(config.evaluation)
    ]
    callbacks.append(RestartClock(throughput))
    return callbacks


def _evaluation_context(
    config: RunConfig, parts: Parts, saving: Checkpointing
) -> Callable[[pl.Trainer, pl.LightningModule], EvaluationContext]:
    """What makes the context of an evaluation when one is due."""

    def context(trainer: pl.Trainer, module: pl.LightningModule) -> EvaluationContext:
        assert isinstance(module, StageModule)
        strategy = trainer.strategy
        saving.settle(trainer)  # records name the checkpoint that they were made from
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
        )

    return context


def _peak(config: RunConfig) -> float | None:
    """TFLOP/s that this run's GPU could do at best, where that is known: the data sheets' numbers are those of bf16."""
    if config.hardware.accelerator != "gpu" or config.trainer.precision != "bf16":
        return None
    return peak_tflops(torch.cuda.get_device_name())


def build_trainer(config: RunConfig, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer, told to leave data order, logging and saving to this project."""
    hardware = config.hardware
    environment = cluster()
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=build_strategy(hardware),
        plugins=[environment] if environment else None,
        default_root_dir=config.folder,  # under Slurm it resumes whatever hpc_ckpt_* lies there
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
