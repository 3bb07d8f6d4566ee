"""Checkpoint folders, and what later stages load from them.

A checkpoint is a folder ``step-000000020`` that holds ``state.ckpt`` (plain tensors and plain data) and, written last,
``manifest.json`` with each file's size and SHA-256. It appears by one rename, so if the manifest does not match, the
folder was damaged afterwards.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.files import move_into_place, sha256, step_folders, step_name
from modules.finite import broken_tensor
from modules.omnimamba.weight_names import shortened
from modules.plain_torch import read_training_state
from modules.run_files import CHECKPOINTS
from modules.run_files import MANIFEST as MANIFEST  # others know it from here

FORMAT_VERSION = 1
STATE = "state.ckpt"
FINITE = "finite"
"""In the manifest: all numbers were checked. Checkpoints of earlier versions are checked when they are read."""
BITS = {2: torch.int16, 4: torch.int32}
PIECE = 2**22


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which one, why, and what to do."""


class NotFiniteError(CheckpointError):
    """A state was not saved, because training could not go on from it."""


def commit(temporary: Path, final: Path, step: int) -> None:
    """Add a manifest to the files in ``temporary`` and rename the folder to ``final``, all or nothing.

    The caller has checked that all numbers are finite.
    """
    files = {
        str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    }
    manifest = {"format_version": FORMAT_VERSION, "step": step, FINITE: True, "files": files}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    # an earlier attempt may have left a checkpoint of this step, later than the one this run resumed from
    move_into_place(temporary, final, over_folder=True)


def problem(folder: Path) -> str | None:
    """Why the checkpoint ``folder`` is damaged, or None if it is not."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, step = manifest["format_version"], int(manifest["step"])
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return f"{MANIFEST} is missing or unreadable"
    if version != FORMAT_VERSION:
        return f"format version {version} is not {FORMAT_VERSION}, the one this code reads"
    checked_before = manifest.get(FINITE) is True
    if manifest.keys() - {FINITE} != {"format_version", "step", "files"} or checked_before != (FINITE in manifest):
        return f"{MANIFEST} has other keys than it was written with"
    if STATE not in files:
        return f"{MANIFEST} does not list {STATE}"
    if folder.name.startswith("step-") and folder.name != step_name(step):
        return f"the manifest says step {step}, which is not the folder's"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {size}"
        if sha256(path) != digest:
            return f"{name} was altered: its SHA-256 is not the manifest's"
    return None if checked_before else _broken(folder)


def _broken(folder: Path) -> str | None:
    """Why training cannot go on from a state whose numbers nobody has checked yet."""
    try:
        tensor = broken_tensor(read_state(folder))
    except CheckpointError as error:
        return str(error.__cause__)
    return tensor and (
        f"{tensor} holds numbers that training cannot go on from (NaN, infinity or a negative mean of squares)"
    )


def latest_valid(checkpoints: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint in the folder ``checkpoints``; ``warn`` is called for each newer one skipped.

    Raises:
        CheckpointError: there are checkpoints, but all of them are damaged.
    """
    folders = step_folders(checkpoints)[::-1]
    found = []
    for folder in folders:
        if (why := problem(folder)) is None:
            return folder
        found.append(f"{folder.name}: {why}")
        warn(f"checkpoint {folder} is skipped: {why}")
    if folders:
        raise CheckpointError(
            f"all checkpoints in {checkpoints} are damaged ({'; '.join(found)}). Restore one, or move the "
            "run folder away to start over."
        )
    return None


def find_checkpoint(path: Path, warn: Callable[[str], None]) -> Path:
    """The checkpoint at ``path``: a checkpoint folder, or the latest one of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).is_file():
        if (why := problem(path)) is None:
            return path
        raise CheckpointError(f"checkpoint {path} cannot be used: {why}; name another one")
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} cannot be used: there is no such folder; name another one")
    found = latest_valid(path / CHECKPOINTS, warn)
    if found is None:
        raise CheckpointError(
            f"{path} holds no checkpoint (checkpoints/step-*); train that run first, or name another folder"
        )
    return found


def checkpoint_id(folder: Path) -> str:
    """Name and SHA-256 of a complete checkpoint, to note what was made with it; "" if there is none."""
    if not (folder / MANIFEST).is_file():
        return ""
    return f"{folder.name} {json.loads((folder / MANIFEST).read_bytes())['files'][STATE]['sha256']}"


def read_state(folder: Path, *, mapped: bool = True) -> dict[str, Any]:
    """The state of a checkpoint, on the CPU. Only plain tensors and data are unpickled.

    With ``mapped``, tensors stay in the file until they are used, and the ranks of a node share their memory. Copy them
    at once, and do not keep them: if the file can no longer be read, the system kills the process (SIGBUS).

    Raises:
        CheckpointError: it holds something else, whatever its manifest says.
    """
    try:
        return read_training_state(folder / STATE, mapped=mapped)
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint {folder} is not one that this code wrote ({STATE}: {error}); remove that folder to use the "
            "checkpoint before it, or name another one"
        ) from error


def read_facts(folder: Path) -> dict[str, Any]:
    """Facts about the run that wrote a checkpoint: configuration, code version, W&B run and attempt."""
    facts: dict[str, Any] = read_state(folder).get("run", {})
    return facts


def model_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The model's own parameters from a checkpoint's state."""
    return {name.removeprefix("model."): value for name, value in state.get("state_dict", {}).items()}


def refuse_misfit(weights: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], origin: str) -> None:
    """Compare names and shapes of ``weights``, which come from ``origin``, with ``wanted``, those of the model.

    Raises:
        CheckpointError: they differ.
    """
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    odd = [
        f"{name} is {shapes.get(name, 'missing')} there and {tuple(wanted[name]) if name in wanted else 'unknown'} here"
        for name in sorted(shapes.keys() | wanted.keys())
        if name not in wanted or shapes.get(name) != tuple(wanted[name])
    ]
    if odd:
        raise CheckpointError(
            f"{origin} does not fit the model: {shortened(odd, 2)}. Keep the model section as it was "
            "(run.allow_changed cannot change the shape of weights), or choose another run.dir to start over"
        )


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """sha256 (hex) of all parameters' names and bits, the same on every device.

    The bits are summed on the weights' own device, both plainly and weighted by index. So gigabytes on a GPU take
    milliseconds.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        bits = parameter.detach().contiguous().flatten().view(BITS[parameter.element_size()])
        sums = torch.zeros(2, dtype=torch.int64, device=bits.device)
        for piece in torch.split(bits, PIECE):
            wide = piece.long()
            place = torch.arange(1, len(wide) + 1, device=bits.device)
            sums = sums * 31 + torch.stack([wide.sum(), (wide * place).sum()])  # wraps around, on every device alike
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {sums.tolist()}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class StageResult:
    """The result of an earlier stage: its weights, and which of them it trained."""

    origin: str
    weights: dict[str, Tensor]
    trained: frozenset[str]
    checkpoint: Path | None = None
    run_id: str = ""
    """W&B run that wrote the checkpoint."""

    @classmethod
    def read(cls, path: Path, warn: Callable[[str], None]) -> "StageResult":
        """Read a checkpoint folder, or the latest checkpoint of a run folder."""
        folder = find_checkpoint(path, warn)
        state = read_state(folder)
        run_id = state.get("run", {}).get("wandb_run_id", "")
        if "stage" not in state:
            raise CheckpointError(f"checkpoint {folder} does not say what its stage trained; name a run of this code")
        return cls(str(path), model_weights(state), frozenset(state["stage"]["trained"]), folder, run_id)


@dataclass
class LoadReport:
    """What `load_results` did: parameters by origin, those kept as initialised, and those not in the model."""

    loaded: dict[str, list[str]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [f"{len(names)} parameters from {origin}" for origin, names in self.loaded.items()]
        for title, names in (("kept as initialised", self.kept), ("unexpected, not loaded", self.unexpected)):
            if names:
                lines.append(f"{len(names)} {title}: {shortened(names)}")
        return lines


def load_results(model: nn.Module, results: Sequence[StageResult]) -> LoadReport:
    """Load stage results into ``model``: each parameter from the stage that trained it.

    Raises:
        CheckpointError: two stages trained the same parameter, an untrained one differs between stages, or a shape
            does not fit.
    """
    report = LoadReport()
    own = model.state_dict()
    for name, current in own.items():
        holders = [result for result in results if name in result.weights]
        if not holders:
            report.kept.append(name)
            continue
        source = _source(name, holders)
        value = source.weights[name]
        if value.shape != current.shape:
            raise CheckpointError(
                f"{name} is {tuple(value.shape)} in {source.origin} but {tuple(current.shape)} in this model; "
                "the two configurations must have the same model section"
            )
        current.copy_(value)
        report.loaded.setdefault(source.origin, []).append(name)
    report.unexpected = sorted({name for result in results for name in result.weights} - own.keys())
    return report


def _source(name: str, holders: Sequence[StageResult]) -> StageResult:
    trainers = [result for result in holders if name in result.trained]
    if len(trainers) > 1:
        raise CheckpointError(
            f"{name} was trained both in {trainers[0].origin} and in {trainers[1].origin}; only one can be kept. "
            "Start from one of them, or freeze it in one stage (stage.freeze)"
        )
    source = (trainers or holders)[0]
    if not trainers:
        for other in holders[1:]:
            if not torch.equal(other.weights[name], source.weights[name]):
                raise CheckpointError(
                    f"{name} was trained in neither {source.origin} nor {other.origin}, yet differs between them: they "
                    "started from different weights (model.init_seed, init_from)"
                )
    return source
