"""Builds what a run reads: the data it trains on, and the samples it is only measured on."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from callbacks.measures.val import ValConfig
from datamodules.data_config import Counts
from datamodules.datasets import Samples
from datamodules.shards.manifest import Manifest
from datamodules.sources.pretokenized import UNKNOWN_VQ
from modules.omnimamba.config import Task
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import ImageTokenizer
from modules.reading import checked
from modules.stages import STAGES
from pipelines.run.config import RunConfig
from pipelines.run.console import warn
from pipelines.run.overrides import ConfigError

if TYPE_CHECKING:  # verbs that train nothing need no Lightning
    from datamodules.mixed import MixedDataModule


def build_data(
    config: RunConfig,
    tokenizer: TextTokenizer,
    vq: ImageTokenizer | None,
    report: Callable[[str], None] = lambda _: None,
) -> "MixedDataModule":
    """The data module of the stage's tasks.

    Raises:
        ConfigError: the codes in the T2I shards are known to be from another VQ tokenizer than ``vq``.
    """
    from datamodules.mixed import MixedDataModule

    tasks = STAGES[config.stage.name].tasks
    data = MixedDataModule(
        config.data,
        config.model,
        tokenizer,
        tasks=tasks,
        seed=config.seed,
        report=report,
        hang_minutes=config.guards.hang_minutes,
    )
    if "t2i" in data.samples and vq is not None:
        _compare_vq(config, config.data.t2i, data.samples["t2i"], vq)
    return data


def build_validation(
    config: RunConfig,
    tokenizer: TextTokenizer,
    vq: ImageTokenizer | None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[Task, Samples]:
    """The samples that evaluation.val measures: those of data.val, of the stage's tasks. Neither seed nor dropout of
    the training matters to them.

    Raises:
        ConfigError: they are the training's own, or damaged, or their codes are from another VQ tokenizer than ``vq``.
    """
    from datamodules.mixed import MixedDataModule

    shards = config.data.val
    tasks = [task for task in STAGES[config.stage.name].tasks if getattr(shards, task)]
    if config.evaluation.section(ValConfig) is None or not tasks:
        return {}
    for task in tasks:
        if _fingerprint(getattr(shards, task)) == _fingerprint(getattr(config.data, task)) != "":
            raise ConfigError(
                f"data.val.{task}={getattr(shards, task)} holds the samples that data.{task} trains on, so its loss "
                "would say nothing; name others (pipelines.prepare with val_share=0.02 keeps some apart)"
            )
        _warn_of_overlap(task, getattr(config.data, task), getattr(shards, task))
    data = replace(
        config.data,
        mmu=shards.mmu,
        t2i=shards.t2i,
        micro_batch=Counts(mmu=1, t2i=1),
        global_batch=None,
        caption="rotate",
        caption_dropout=0.0,
    )
    try:
        opened = MixedDataModule(data, config.model, tokenizer, tasks=tasks, seed=0, report=report).samples
    except ValueError as error:
        raise ConfigError(f"data.val: {error}") from error
    if "t2i" in opened and vq is not None:
        _compare_vq(config, shards.t2i, opened["t2i"], vq)
    return opened


def _warn_of_overlap(task: Task, training: str, validation: str) -> None:
    """Warn if validation shards were kept apart from other training shards than those of the run."""
    kept, trained = _meta(validation), _meta(training)
    built_together = trained.get("part") == "train" and trained.get("val_share") == kept.get("val_share")
    if kept.get("part") == "val" and not built_together:
        warn(
            f"data.val.{task}={validation} was kept apart from other shards than data.{task}={training}, which may "
            "hold the same pictures; then its loss says too little. Train on the shards that were built with it"
        )


def _meta(manifest: str) -> dict[str, Any]:
    """What a manifest says of its data set; nothing if it cannot be read: whoever opens it says so."""
    try:
        return dict(Manifest.read(manifest).meta) if manifest else {}
    except (OSError, ValueError):
        return {}


def _fingerprint(manifest: str) -> str:
    """The fingerprint of a data set; "" if it cannot be read: whoever opens it says so."""
    try:
        return Manifest.read(manifest).fingerprint if manifest else ""
    except (OSError, ValueError):
        return ""


def _compare_vq(config: RunConfig, manifest: str, samples: Samples, vq: ImageTokenizer) -> None:
    """Refuse shards whose codes are from another VQ tokenizer than ``vq``; warn if their tokenizer is unknown."""
    made_with = checked(samples.shards.meta.get("vq"), dict[str, Any], f"{manifest}, vq of its meta")
    sizes = (made_with.get("codebook_size"), made_with.get("tokens_per_image"))
    if made_with.get("kind") == UNKNOWN_VQ and sizes == (vq.codebook_size, vq.tokens_per_image):
        warn(
            f"the VQ tokenizer that made the codes in {manifest} is unknown. If it was not model.vq="
            f"{config.model.vq}, pictures will be noise: look at some with `python -m pipelines.prepare peek --vq`"
        )
    elif made_with.get("fingerprint") != vq.fingerprint:
        raise ConfigError(
            f"the codes in {manifest} were made with VQ tokenizer {made_with.get('kind')} "
            f"({made_with.get('fingerprint')}), but model.vq={config.model.vq} is {vq.name} ({vq.fingerprint}): "
            "its pictures would be noise. Name the tokenizer that the shards were prepared with"
        )
