"""The root of the typed configuration, and how it is read and written."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from callbacks.checkpoint_config import CheckpointConfig
from callbacks.guard_config import GuardConfig
from callbacks.measures.registry import EvaluationConfig
from callbacks.measures.val import ValConfig
from callbacks.tracking import TrackingConfig
from datamodules.data_config import DataConfig
from datamodules.scenes.prepare import PrepareScenesConfig
from modules.adapter_files import AdapterFolders
from modules.model_files import kept
from modules.omnimamba.config import TASKS, ModelConfig
from modules.optim import OptimConfig
from modules.reading import shown
from modules.stages import STAGES, StageConfig
from pipelines.run.hardware import HardwareConfig, kernel_problems
from pipelines.run.overrides import ConfigError, build, dotlist, merge, read_known, refuse, refuse_unknown_words
from pipelines.run.paths import in_words, own_folder
from pipelines.run.texts import literally

__all__ = [
    "ConfigError",
    "RunConfig",
    "RunFolderConfig",
    "TrainerConfig",
    "as_dict",
    "as_yaml",
    "differences",
    "load",
]

_NAME = re.compile(r"\w([\w .+=,@%-]*[\w.+=,@%-])?")
_LONGEST_NAME = 200
"""Bytes; file systems allow 255, and lock files and temporary names are longer than the name."""


@dataclass(frozen=True, kw_only=True)
class RunFolderConfig:
    """Where the run folder is, and what a resume may change."""

    dir: str = ""
    """The run folder; empty: runs/<name>."""
    wait_seconds: float = 60.0
    """How long to wait for a run folder that another process holds, before the run ends with exit code 75."""
    allow_changed: tuple[str, ...] = ()
    """Keys that may differ from the run folder's config.yaml on a resume, in addition to those that always may."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long to train and how often to log."""

    max_steps: int
    """Optimizer steps of the whole run."""
    log_every_n_steps: int = 10
    """Steps between two logs."""
    precision: Literal["float32", "bf16"] = "float32"
    """Type of matrix products; parameters, norms, residual and the scan's own parameters are always float32."""
    deterministic: bool = False
    """On a GPU, use kernels that sum in a fixed order: a run and its resume are bit-identical, for a fifth more time
    (docs/experiments.md). A CPU is always deterministic."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        return [
            f"trainer.{name}={getattr(self, name)} must be at least 1"
            for name in ("max_steps", "log_every_n_steps")
            if getattr(self, name) < 1
        ]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a run. One YAML file per run under configs/; every key can be overridden."""

    name: str
    """Name of the run, and of its folder below runs/."""
    seed: int = 0
    """Seed of the data order and of all randomness in training; initial weights use model.init_seed."""
    stage: StageConfig
    pretrained: str = ""
    """File or folder of third-party weights to start from: ``state-spaces/mamba2-*``, or a published OmniMamba. The
    weights of the encoders are named in model.vision and model.vq."""
    pretrained_adapters: AdapterFolders = field(default_factory=AdapterFolders)
    """Task adapters in peft's format to start from, in addition to ``pretrained``."""
    init_from: tuple[str, ...] = ()
    """Run or checkpoint folders of earlier stages, whose weights this run starts from."""
    trainer: TrainerConfig
    run: RunFolderConfig = field(default_factory=RunFolderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    scenes: PrepareScenesConfig | None = None
    """Embedded data to prepare before anything is read, if it is missing."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run.dir or f"runs/{self.name}")

    def problems(self) -> list[str]:
        """Broken rules of all sections but tracking, each with the way out; `load` checks that one."""
        sections = (self.stage, self.trainer, self.model, self.data, self.optim, self.checkpoint, self.guards)
        sections_too = (self.evaluation, self.hardware)
        found = [problem for section in (*sections, *sections_too) for problem in section.problems()]
        if self.trainer.precision != "float32" and self.hardware.accelerator == "cpu":
            found.append(
                f"trainer.precision={self.trainer.precision} needs hardware.accelerator=gpu; a CPU computes in float32"
            )
        found += kernel_problems(self.hardware, self.model, self.trainer.precision)
        if not self.model.tokenizer:
            found.append("model.tokenizer is empty; name a local tokenizer.json")
        if self.guards.spike_sigma and self.hardware.strategy != "ddp":
            found.append(
                f"guards.spike_sigma={self.guards.spike_sigma} needs hardware.strategy=ddp: under "
                f"{self.hardware.strategy} an update cannot be left out"
            )
        if not _NAME.fullmatch(self.name) or len(self.name.encode()) > _LONGEST_NAME:
            found.append(
                f"name={shown(self.name)} must be a folder name: letters, digits and ' ._+=,@%-', the first a letter, "
                f"digit or _, the last no blank, at most {_LONGEST_NAME} bytes"
            )
        found += self._best_problems()
        if self.scenes is not None:
            found += [f"scenes.{problem}" for problem in self.scenes.problems()]
        return found + self._data_problems() + self._validation_problems()

    def _best_problems(self) -> list[str]:
        best, own = self.checkpoint.best, self.evaluation.section(ValConfig)
        is_loss = best.startswith("eval/val/loss_")
        key, every = "evaluation.every_n_steps", self.evaluation.every_n_steps
        if is_loss and own is not None and own.every_n_steps:
            key, every = "evaluation.val.every_n_steps", own.every_n_steps
        found = []
        if best and every % self.checkpoint.every_n_steps:
            found.append(
                f"checkpoint.best needs a checkpoint at every evaluated step: checkpoint.every_n_steps="
                f"{self.checkpoint.every_n_steps} must divide {key}={every}"
            )
        if is_loss and self.checkpoint.best_is == "highest":
            found.append(f"checkpoint.best={best} is a loss; set checkpoint.best_is=lowest")
        return found

    def _validation_problems(self) -> list[str]:
        named = [task for task in TASKS if getattr(self.data.val, task)]
        tasks = STAGES[self.stage.name].tasks
        measured = self.evaluation.section(ValConfig) is not None
        if named and not measured:
            key = f"data.val.{named[0]}"
            return [f"{key} is named, but evaluation.val is null, so nothing reads it; set evaluation.val={{}}"]
        if measured and not set(named) & set(tasks):
            return [
                f"evaluation.val measures the loss of {' and '.join(tasks)} in stage {self.stage.name}, but "
                f"{' and '.join(f'data.val.{task}' for task in tasks)} is empty; name a shard manifest, or set "
                "evaluation.val=null"
            ]
        return []

    def _data_problems(self) -> list[str]:
        found = []
        tasks = STAGES[self.stage.name].tasks
        for task in TASKS:
            count = self.data.micro_batch.of(task)
            if task in tasks and count < 1:
                found.append(
                    f"stage {self.stage.name} trains {task}, but data.micro_batch.{task}={count}; it must be at least 1"
                )
            if task in tasks and not getattr(self.data, task):
                found.append(f"stage {self.stage.name} trains {task}, but data.{task} is empty; name a shard manifest")
        if "mmu" in tasks and self.model.vision.kind == "features":
            found.append("model.vision.kind=features cannot train MMU: the shards hold images; choose an encoder")
        try:
            self.data.accumulation(tasks, self.hardware.ranks)
        except ValueError as error:
            found.append(str(error))
        except ZeroDivisionError:  # reported above as an empty micro-batch
            pass
        return found


def load(path: Path, overrides: Sequence[str] = (), *, tracks: bool = True) -> RunConfig:
    """Load the configuration of a YAML file and its includes, with ``key=value`` overrides, and check it.

    That of a run folder or an export means the tokenizers kept there. ``tracks`` is false for those who only read a
    run: what W&B refuses does not matter to them.

    Raises:
        ConfigError: it is wrong; the message names key, value, rule and way out.
    """
    values = read_known(path)
    refuse_unknown_words(overrides)
    if (folder := own_folder(path)) is not None:
        for key, file in kept(folder).items():
            if OmegaConf.select(values, f"model.{key}", throw_on_resolution_failure=False):
                OmegaConf.update(values, f"model.{key}", literally(str(file)))
    given = OmegaConf.create(in_words(OmegaConf.to_container(dotlist(overrides, RunConfig))))
    config = build(RunConfig, merge(values, given, source="the command line"), source=str(path))
    if tracks:
        refuse(config.tracking.problems(), source=str(path))
    return config


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain data, as written to config.yaml."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))  # tuples become lists, as in YAML
    return plain


def as_yaml(config: RunConfig) -> str:
    """The configuration as the YAML of config.yaml, which can be run as it is."""
    return OmegaConf.to_yaml(OmegaConf.create(literally(as_dict(config))))


FREE_ON_RESUME = (
    "run",
    "checkpoint",
    "guards.hang_minutes",
    "guards.memory_share",
    "evaluation",
    "tracking",
    "hardware",
    "trainer.log_every_n_steps",
    "data.mmu",
    "data.t2i",
    "data.val",
    "data.cache",
    "data.bad_limit",
    "data.num_workers",
    "data.log_samples",
    "data.accept_changed",
    "pretrained",
    "pretrained_adapters",
    "model.tokenizer",
    "model.vq",
    "model.vision.dino.weights",
    "model.vision.siglip.weights",
    "model.vision.chunk",
    "scenes.folder",
)
"""Keys that a resumed run may change, because they affect neither the weights nor the training data.

Files may move: the checkpoint's hashes ensure that samples, tokenizers and encoders are the same. The checkpoint holds
all weights, so those that the run started from are not read again."""


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The leaves that differ between two configurations, as {dotted key: (old, new)}."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[prefix + key] = (a, b)
    return found
