"""The run folder: which run it belongs to, whether to start, resume or leave it alone, and what is written to it."""

import json
import os
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from typing_extensions import TypedDict

from callbacks.tracking import read_metrics
from callbacks.wandb_names import id_problems
from datamodules.data_config import Counts
from modules.checkpoints import latest_valid, read_facts
from modules.files import step_name, write_file
from modules.omnimamba.config import TASKS
from modules.reading import checked
from modules.redaction import redacted
from modules.run_files import CHECKPOINTS, COMPLETE, CONFIG, METRICS, PREEMPTED, PROVENANCE
from pipelines.run.config import FREE_ON_RESUME, RunConfig, as_dict, as_yaml, differences
from pipelines.run.console import warn
from pipelines.run.overrides import ConfigError, build, read_yaml
from pipelines.run.provenance import Attempt, Provenance, provenance, read_provenance
from pipelines.run.texts import literally


class _Opened(TypedDict):
    config: dict[str, Any]
    checkpoint: str | None
    complete: bool
    threads: int
    cpu_capability: str


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder: the final configuration, and the checkpoint to resume from, if any."""

    path: Path
    config: RunConfig
    checkpoint: Path | None
    complete: bool
    threads: int = 0
    """CPU threads of the attempt that is resumed; 0 if nothing is, or it is not known."""
    cpu_capability: str = ""
    """The instruction set that torch used in that attempt."""

    def as_json(self) -> dict[str, Any]:
        """Plain data for `from_json`."""
        checkpoint = self.checkpoint and str(self.checkpoint)
        return {
            "config": as_dict(self.config),
            "checkpoint": checkpoint,
            "complete": self.complete,
            "threads": self.threads,
            "cpu_capability": self.cpu_capability,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunFolder":
        """Restore the run folder from `as_json` of another rank.

        Raises:
            ConfigError: the values are not those of a run folder.
        """
        wanted = checked(values, _Opened, "the run folder that rank 0 has opened")
        config = build(RunConfig, OmegaConf.create(literally(wanted["config"])), source="rank 0")
        checkpoint = wanted["checkpoint"]
        return cls(
            config.folder,
            config,
            None if checkpoint is None else Path(checkpoint),
            wanted["complete"],
            wanted["threads"],
            wanted["cpu_capability"],
        )

    def begin(self, data: dict[str, str], weights: dict[str, str] | None = None) -> tuple[str, int]:
        """Write config.yaml and provenance.json. Only rank 0 calls this.

        ``data`` and ``weights`` are fingerprints of the data and of the third-party weights. Returns the W&B run id,
        which is the same in every attempt, and the number of this attempt, from 1. For a new run, WANDB_RUN_ID in the
        environment is the run id; `wandb agent` sets it. If provenance.json was lost, the run id comes from the
        checkpoint and the number from metrics.jsonl.

        Raises:
            ConfigError: a resumed run would see images through a different encoder, or the folder belongs to another
                run than the one that a sweep's agent started.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / PREEMPTED).unlink(missing_ok=True)
        known = _provenance(self.path) or self._known_elsewhere()
        attempts, weights = known["attempts"], weights or {}
        if self.checkpoint is not None and attempts:
            _refuse_other_encoder(attempts[-1].get("weights", {}), weights)
        given = os.environ.get("WANDB_RUN_ID")
        run_id = known.get("wandb_run_id") or given or secrets.token_hex(8)
        if run_id == given and (problems := id_problems(run_id, "WANDB_RUN_ID")):
            raise ConfigError(f"{problems[0]}; correct or unset it")
        _refuse_other_trial(self.path, run_id)
        (self.path / COMPLETE).unlink(missing_ok=True)  # it exists if a complete run is trained further
        write_file(self.path / CONFIG, as_yaml(self.config))
        resumed = self.checkpoint.name if self.checkpoint else None
        before = [each["attempt"] for each in (*attempts, *read_metrics(self.path)) if "attempt" in each]
        number = 1 + max([len(attempts), *before])
        attempt = {"attempt": number, "time": round(time.time(), 3), "resumed": resumed, "data": data,
                   "weights": weights, **provenance()}  # fmt: skip
        facts = redacted({"wandb_run_id": run_id, "attempts": [*attempts, attempt]})
        write_file(self.path / PROVENANCE, json.dumps(facts, indent=1))
        return run_id, number

    def _known_elsewhere(self) -> Provenance:
        """The W&B run id from the resumed checkpoint, if provenance.json is missing."""
        if self.checkpoint is None or not (run_id := read_facts(self.checkpoint).get("wandb_run_id")):
            return {"attempts": []}
        if (self.path / METRICS).is_file():
            warn(f"{self.path / PROVENANCE} is missing; the run continues as W&B run {run_id}, from {self.checkpoint}")
        return {"wandb_run_id": run_id, "attempts": []}

    def finish(self, step: int) -> None:
        """Mark the run as complete. Only rank 0 calls this."""
        write_file(self.path / COMPLETE, f"{step}\n")

    def pause(self, step: int) -> None:
        """Mark the run as stopped on request at ``step``, to be started again. Only rank 0 calls this."""
        write_file(self.path / PREEMPTED, f"{step}\n")


def settle(config: RunConfig) -> RunConfig:
    """``config`` as its run folder completes it. Nothing is written, and no checkpoint is read.

    Raises:
        ConfigError: the folder belongs to another configuration, or is not a run folder.
    """
    path = config.folder
    if not path.exists() or not any(file for file in path.iterdir() if not file.name.startswith(".")):
        return _settled(config)
    if not (path / CONFIG).is_file():
        raise ConfigError(
            f"run folder {path} holds files but no {CONFIG}: it is not a run of this project, and nothing is "
            "overwritten. Choose another run.dir"
        )
    stored = OmegaConf.to_container(read_yaml(path / CONFIG))
    assert isinstance(stored, dict)
    if not stored:
        raise ConfigError(
            f"{path / CONFIG} is empty; restore its content. Each checkpoint holds it, too: torch.load(.../state.ckpt, "
            'weights_only=True)["run"]["config"]'
        )
    config = _settled(config, stored)
    _refuse_changes(config, {str(key): value for key, value in stored.items()})
    return config


def open_run(config: RunConfig) -> RunFolder:
    """Decide what to do with the configuration's run folder; nothing is written yet.

    Raises:
        ConfigError: the folder belongs to another configuration, or is not a run folder.
        CheckpointError: it has checkpoints, but all of them are damaged.
        ConfigError: provenance.json is damaged.
    """
    config, path = settle(config), config.folder
    checkpoint = latest_valid(path / CHECKPOINTS, warn)
    complete = _reached_its_end(config, checkpoint)
    metrics = path / METRICS
    if checkpoint is None and not complete and metrics.is_file() and metrics.stat().st_size:
        warn(
            f"{path} has no checkpoint yet: the run starts again from its beginning; {METRICS} is kept and appended to"
        )
    last: Attempt = {}
    if checkpoint is not None and not complete and (known := _provenance(path)) is not None and known["attempts"]:
        last = known["attempts"][-1]
    return RunFolder(path, config, checkpoint, complete, last.get("threads", 0), last.get("cpu_capability", ""))


def _provenance(path: Path) -> Provenance | None:
    try:
        return read_provenance(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def completed_step(folder: Path) -> int | None:
    """The step in COMPLETE, at which the run in ``folder`` ended; None if it has not.

    Raises:
        ConfigError: the file is damaged.
    """
    file = folder / COMPLETE
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdecimal():
        raise ConfigError(f"{file} is damaged: it holds {text[:20]!r} instead of a step. Delete it and start again")
    return int(text)


def _reached_its_end(config: RunConfig, checkpoint: Path | None) -> bool:
    """Whether there is nothing left to train; a complete run that is asked for more steps is trained further.

    Raises:
        ConfigError: COMPLETE is damaged or beyond trainer.max_steps, or its checkpoint is missing or damaged.
    """
    path, wanted = config.folder, config.trainer.max_steps
    step = completed_step(path)
    if step is None:
        return False
    if step > wanted:
        raise ConfigError(
            f"run folder {path} is complete at step {step}, beyond trainer.max_steps={wanted}: steps already trained "
            f"cannot be undone. Choose another run.dir, or trainer.max_steps={step}"
        )
    if checkpoint is None or checkpoint.name != step_name(step):
        there = checkpoint.name if checkpoint else "the beginning"
        raise ConfigError(
            f"run folder {path} is complete at step {step} ({COMPLETE}), but {step_name(step)} is missing or "
            f"damaged. Restore that checkpoint, or delete {COMPLETE} to train again from {there}"
        )
    if step < wanted:
        warn(
            f"{path} was complete at step {step} and is trained further, to trainer.max_steps={wanted}; from here on "
            "the learning rate is that of a run of that length"
        )
    return step == wanted


def _settled(config: RunConfig, stored: Any = None) -> RunConfig:
    """Fill in the global batch, so that a resume with another number of ranks keeps it."""
    whole = config.data.global_batch
    data = (stored or {}).get("data")
    known = data.get("global_batch") if isinstance(data, dict) else None
    if whole is None and isinstance(known, dict) and known.keys() == set(TASKS):
        whole = Counts(**known)
    if whole is None:
        ranks = config.hardware.ranks
        whole = Counts(**{task: config.data.micro_batch.of(task) * ranks for task in TASKS})
    settled = replace(config, data=replace(config.data, global_batch=whole))
    if problems := settled.problems():
        raise ConfigError(f"{config.folder}:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return settled


def _refuse_changes(config: RunConfig, stored: dict[str, Any]) -> None:
    free = (*FREE_ON_RESUME, *config.run.allow_changed)
    with suppress(ConfigError):  # a file of another program, or a damaged one, is compared as it is
        # add keys that are new since the version that wrote the file
        stored = as_dict(build(RunConfig, OmegaConf.create(stored), source=CONFIG))
    changed = {
        key: values
        for key, values in differences(stored, as_dict(config)).items()
        if not any(key == name or key.startswith(name + ".") for name in free)
    }
    if changed:
        accepts = shlex.quote(f"run.allow_changed=[{','.join(changed)}]")  # shells read brackets as patterns
        lines = "\n".join(f"  {key}: {old!r:.200} there, {new!r:.200} now" for key, (old, new) in changed.items())
        raise ConfigError(
            f"run folder {config.folder} belongs to another configuration:\n{lines}\n"
            f"Choose another run.dir, or accept the change with {accepts}"
        )


def _refuse_other_encoder(before: dict[str, str], now: dict[str, str]) -> None:
    old, new = before.get("vision"), now.get("vision")
    if old and old != new:
        raise ConfigError(
            f"the vision encoder's weights ({new}) are not the ones the run started with ({old}): the model would get "
            "different features. Name the same files in model.vision.*.weights"
        )


def _refuse_other_trial(path: Path, run_id: str) -> None:
    """Refuse a folder of another run under a sweep's agent: W&B would use the agent's run id in any case."""
    given = os.environ.get("WANDB_RUN_ID")
    if "WANDB_SWEEP_ID" in os.environ and given and given != run_id:
        raise ConfigError(
            f"run folder {path} belongs to W&B run {run_id}, but the sweep's agent started run {given}; leave "
            "run.dir out, so that each trial has its own folder"
        )
