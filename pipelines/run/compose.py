"""Builds the parts of a run from its configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.mixed import MixedDataModule
from datamodules.scenes.prepare import prepare_scenes
from datamodules.sources.pretokenized import UNKNOWN_VQ
from modules.adapter_files import WEIGHTS, load_adapters
from modules.checkpoints import MANIFEST, StageResult, checkpoint_id, load_results
from modules.files import sha256
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import ImageTokenizer, load_image_tokenizer
from modules.pretrained import load_pretrained
from modules.reading import checked
from modules.run_files import COMPLETE, CONFIG
from modules.stages import STAGES, StageModule
from modules.weight_files import weight_files
from pipelines.run.config import RunConfig
from pipelines.run.console import warn
from pipelines.run.hardware import COMPUTE
from pipelines.run.overrides import ConfigError


class Origin(NamedTuple):
    """A checkpoint that a run starts from: its path as configured, name and hash, W&B run, and manifest."""

    path: str
    checkpoint: str
    run_id: str
    manifest: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a run, without its callbacks."""

    tokenizer: TextTokenizer
    vq: ImageTokenizer | None
    data: MixedDataModule
    stage: StageModule
    origins: tuple[Origin, ...]
    """The checkpoints its weights started from."""


def build_parts(config: RunConfig, report: Callable[[str], None], *, resumed: bool) -> Parts:
    """Build tokenizers, data and the stage with its model, in the order in which their errors should appear."""
    tokenizer, vq = build_tokenizer(config.model), build_vq(config.model)
    data = build_data(config, tokenizer, vq, report)
    origins: list[Origin] = []
    model = build_model(config, report=report, resumed=resumed, started_from=origins.append)
    stage = build_stage(config, model)
    return Parts(tokenizer=tokenizer, vq=vq, data=data, stage=stage, origins=tuple(origins))


def make_embedded_data(config: RunConfig) -> None:
    """Draw and prepare the scenes that the configuration asks for, if they are missing."""
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
        ConfigError: it is missing, or its codes are not those of the model.
    """
    if not model.vq:
        return None
    if not Path(model.vq).exists():
        raise ConfigError(
            f"model.vq={model.vq} does not exist; name the VQ tokenizer's file, or set model.vq='' if no pictures are "
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

    A resumed checkpoint holds all weights, so the files they started from may be gone. ``started_from`` is called with
    the checkpoint of each earlier stage.
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
    for line in load_adapters(model, config.pretrained_adapters):
        report(line)
    if config.init_from:
        for path in config.init_from:
            if (Path(path) / CONFIG).is_file() and not (Path(path) / COMPLETE).is_file():
                warn(f"init_from: {path} is not complete; its latest checkpoint is used as it is")
        results = [StageResult.read(Path(path), warn) for path in config.init_from]
        for line in load_results(model, results).lines():
            report(line)
        for result in results:
            assert result.checkpoint is not None
            manifest = (result.checkpoint / MANIFEST).read_text(encoding="utf-8")
            started_from(Origin(result.origin, checkpoint_id(result.checkpoint), result.run_id, manifest))
    return model


def weight_fingerprints(config: RunConfig, model: OmniMamba, *, resumed: bool) -> dict[str, str]:
    """sha256 (hex) of the third-party weights of a run: the vision encoder's and, at its start, the pretrained ones.

    This reads gigabytes, so only one process should call it, once.
    """
    found = {}
    if "mmu" in STAGES[config.stage.name].tasks and model.vision.fingerprint:
        found["vision"] = model.vision.fingerprint
    if config.pretrained and not resumed:
        found |= {f"pretrained/{file.name}": sha256(file) for file in weight_files(Path(config.pretrained))}
    if not resumed:
        folders = config.pretrained_adapters.named()
        found |= {f"pretrained_adapters/{task}": sha256(folder / WEIGHTS) for task, folder in folders.items()}
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
        ConfigError: the codes in the T2I shards are known to be from another VQ tokenizer than ``vq``.
    """
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
        _compare_vq(config, data.samples["t2i"].shards.meta.get("vq"), vq)
    return data


def _compare_vq(config: RunConfig, made_with: Any, vq: ImageTokenizer) -> None:
    """Refuse shards whose codes are from another VQ tokenizer than ``vq``; warn if their tokenizer is unknown."""
    made_with = checked(made_with, dict[str, Any], f"{config.data.t2i}, vq of its meta")
    sizes = (made_with.get("codebook_size"), made_with.get("tokens_per_image"))
    if made_with.get("kind") == UNKNOWN_VQ and sizes == (vq.codebook_size, vq.tokens_per_image):
        warn(
            f"the VQ tokenizer that made the codes in {config.data.t2i} is unknown. If it was not model.vq="
            f"{config.model.vq}, pictures will be noise: look at some with `python -m pipelines.prepare peek --vq`"
        )
    elif made_with.get("fingerprint") != vq.fingerprint:
        raise ConfigError(
            f"the codes in {config.data.t2i} were made with VQ tokenizer {made_with.get('kind')} "
            f"({made_with.get('fingerprint')}), but model.vq={config.model.vq} is {vq.name} ({vq.fingerprint}): "
            "its pictures would be noise. Name the tokenizer that the shards were prepared with"
        )
