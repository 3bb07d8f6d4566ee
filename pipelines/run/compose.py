"""Builds the parts of a run from its configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datamodules.datasets import Samples
from datamodules.scenes.prepare import prepare_scenes
from datamodules.shards.manifest import Manifest
from modules.adapter_files import WEIGHTS, load_adapters
from modules.checkpoints import MANIFEST, CheckpointError, StageResult, checkpoint_id, load_results, read_facts
from modules.exports import read_facts as read_export_facts
from modules.files import sha256
from modules.model_files import ModelFiles, carried_vq
from modules.omnimamba.config import ModelConfig, Task
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import ImageTokenizer, load_image_tokenizer
from modules.pretrained import load_pretrained
from modules.reading import checked
from modules.run_files import COMPLETE, CONFIG, EXPORT
from modules.stages import STAGES
from modules.weight_files import weight_files
from pipelines.run.config import RunConfig
from pipelines.run.console import warn
from pipelines.run.data import build_data, build_validation
from pipelines.run.hardware import COMPUTE
from pipelines.run.overrides import ConfigError

if TYPE_CHECKING:  # verbs that train nothing use this module too, and need no Lightning
    from datamodules.mixed import MixedDataModule
    from modules.stage_modules import StageModule


class Origin(NamedTuple):
    """A checkpoint that a run starts from: its path as configured, name and hash, W&B run, manifest, and facts."""

    path: str
    checkpoint: str
    run_id: str
    manifest: str
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a run, without its callbacks."""

    tokenizer: TextTokenizer
    vq: ImageTokenizer | None
    data: "MixedDataModule"
    validation: Mapping[Task, Samples]
    """What is measured and never trained on, by task."""
    stage: "StageModule"
    origins: tuple[Origin, ...]
    """The checkpoints its weights started from."""
    files: ModelFiles
    """Hashes of its tokenizers."""


def build_parts(config: RunConfig, report: Callable[[str], None], *, checkpoint: Path | None) -> Parts:
    """Build tokenizers, data and the stage with its model, in the order in which their errors should appear.

    ``checkpoint`` is the one that the run is resumed from, if any.
    """
    tokenizer, vq = build_tokenizer(config.model), build_vq(config.model)
    files = ModelFiles.of(tokenizer, vq)
    if checkpoint is None:
        agree_with_pretrained(config, files, draws="t2i" in STAGES[config.stage.name].tasks)
    else:
        files = files.agreed(ModelFiles.of_checkpoint(checkpoint), str(checkpoint), config.model, warn)
    data = build_data(config, tokenizer, vq, report)
    validation = build_validation(config, tokenizer, vq, report)
    origins: list[Origin] = []
    model = build_model(config, report=report, resumed=checkpoint is not None, started_from=origins.append)
    for origin in origins:
        agree_with_stage(config, files, origin.path, origin.facts)
    if not files.vq:
        files = replace(files, vq=_vq_of_codes(config))
    stage = build_stage(config, model)
    return Parts(
        tokenizer=tokenizer,
        vq=vq,
        data=data,
        validation=validation,
        stage=stage,
        origins=tuple(origins),
        files=files,
    )


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
    hardware = config.hardware
    model.backbone.choose(scan=hardware.scan, projection=hardware.projection, recompute=hardware.recompute)
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
            facts = read_facts(result.checkpoint)
            started_from(Origin(result.origin, checkpoint_id(result.checkpoint), result.run_id, manifest, facts))
    return model


def agree_with_stage(config: RunConfig, files: ModelFiles, path: str, facts: Mapping[str, Any]) -> None:
    """Compare the tokenizers with those of an earlier stage in ``init_from``, whose checkpoint says ``facts``.

    Raises:
        CheckpointError: they differ. The VQ tokenizer of a stage that did not learn to draw does not matter.
    """
    known = ModelFiles.stored(dict(facts), path)
    where = f"config of init_from={path}"
    section = checked(checked(facts.get("config", {}), dict[str, Any], where).get("stage", {}), dict[str, Any], where)
    stage = checked(section.get("name", ""), str, f"{where}, stage.name")
    if stage in STAGES and "t2i" not in STAGES[stage].tasks:
        files, known = replace(files, vq=""), replace(known, vq="")
    files.agreed(known, f"init_from={path}", config.model, warn)


def agree_with_pretrained(config: RunConfig, files: ModelFiles, *, draws: bool) -> None:
    """Compare the tokenizers with those of the weights in ``pretrained``: an export's, or a VQ tokenizer among them.

    Raises:
        CheckpointError: they differ. The VQ tokenizer only matters if the model ``draws``.
    """
    if not config.pretrained:
        return
    path = Path(config.pretrained)
    folder = path if path.is_dir() else path.parent
    if (folder / EXPORT).is_file():
        known = ModelFiles.stored(read_export_facts(folder), str(folder / EXPORT))
        (files if draws else replace(files, vq="")).agreed(known, f"pretrained={path}", config.model, warn)
    made_codes = _vq_of_codes(config) if draws else ""
    used = files.vq or made_codes
    if not draws or not used or (carried := carried_vq(path)) is None or carried.fingerprint == used:
        return
    codes = f"the codes in data.t2i={config.data.t2i}"
    whose = {
        carried.fingerprint: "with the checkpoint's",
        files.vq: "with model.vq's",
        "": "with an unknown one, or are not there yet",
    }
    raise CheckpointError(
        f"pretrained={path} carries a VQ tokenizer of its own (hash {carried.fingerprint}), which is not that of "
        f"{f'model.vq={config.model.vq}' if files.vq else codes} (hash {used}); {codes} were made "
        f"{whose.get(made_codes, f'with a third one (hash {made_codes})')}. To these weights, codes of another VQ "
        f"tokenizer are noise: set model.vq={path}, and prepare the T2I data with vq={path}"
    )


def _vq_of_codes(config: RunConfig) -> str:
    """The hash of the VQ tokenizer that made the codes in the T2I shards, as their manifest says; "" if unknown."""
    if not config.data.t2i:
        return ""
    try:
        made_with = Manifest.read(config.data.t2i).meta.get("vq")
    except (OSError, ValueError):  # whoever reads the data says so
        return ""
    found = made_with.get("fingerprint") if isinstance(made_with, dict) else None
    return found if isinstance(found, str) else ""


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


def build_stage(config: RunConfig, model: OmniMamba) -> "StageModule":
    """The stage's LightningModule."""
    from modules.stage_modules import STAGE_MODULES

    stage = STAGE_MODULES[config.stage.name]
    return stage(model, config.stage, config.optim, max_steps=config.trainer.max_steps, seed=config.seed)
