"""Checks of what a machine must have for a run; each gives a verdict, and none of them raises."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from callbacks.wandb_run import tracking_mode
from datamodules.datasets import Samples
from datamodules.plan import Places
from modules.checkpoints import MANIFEST, read_facts
from modules.files import GIB, code_version, step_folders
from modules.model_files import ModelFiles
from modules.omnimamba import kernels
from modules.omnimamba.config import Task
from modules.omnimamba.vision import build_vision
from modules.run_files import CHECKPOINTS, COMPLETE, CONFIG
from modules.stages import STAGES
from modules.timing import gemm_tflops, timed
from modules.weight_files import weight_files
from pipelines.run.compose import agree_with_pretrained, agree_with_stage, build_tokenizer, build_vq
from pipelines.run.config import RunConfig
from pipelines.run.console import warn
from pipelines.run.data import build_data, build_validation
from pipelines.run.ending import USER_ERRORS
from pipelines.run.hardware import check_hardware
from pipelines.run.memory import estimate_memory, planned_model
from pipelines.run.ranks import Ranks

State = Literal["ok", "warning", "failed"]
PROJECT = "omnimamba-pipeline"
LOOK_AT = 16
"""Samples of each task to read and decode."""
CLOCK_SKEW = 5.0
"""Largest difference in seconds between the clocks of the run folder's file system and this machine."""


@dataclass(frozen=True)
class Verdict:
    """One line of the examination."""

    name: str
    state: State
    text: str


Check = Callable[[RunConfig | None, Ranks], Iterator[Verdict]]


def examine(config: RunConfig | None, ranks: Ranks) -> Iterator[Verdict]:
    """All verdicts; with a ``config``, also those about its run. All processes of ``ranks`` must call it together."""
    for check in CHECKS:
        try:
            yield from check(config, ranks)
        except Exception as error:  # noqa: BLE001  # any failure is a verdict, and the other checks still run
            yield Verdict(check.__name__.strip("_").replace("_", " "), "failed", str(error) or repr(error))


def _packages(_config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    found = []
    for text in requires(PROJECT) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            yield Verdict("packages", "failed", f"{requirement} is not installed; make setup, or pip install -e .")
            continue
        if not requirement.specifier.contains(have.split("+")[0], prereleases=True):
            yield Verdict("packages", "failed", f"{requirement.name} {have} is installed, {requirement} is needed")
            continue
        found.append(requirement.name)
    commit = code_version()
    yield Verdict("packages", "ok", f"{len(found)} as pinned; torch {torch.__version__}, code {commit[:12]}")


def _gpus(config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    wanted = config is not None and config.hardware.accelerator == "gpu"
    if wanted and config is not None:
        check_hardware(config.hardware)
    if not torch.cuda.is_available():
        yield Verdict("GPUs", "ok", "none here, and none needed")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        busy = total - free
        state: State = "warning" if busy > 2 * GIB else "ok"
        yield Verdict(
            f"GPU {number}", state, f"{properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB of memory are free"
        )


def _kernels(config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    if not torch.cuda.is_available():
        yield Verdict("kernels", "ok", "not needed on a CPU, which runs the reference implementation")
        return
    kernels.load()
    names = ("mamba-ssm", "causal-conv1d", "triton")
    yield Verdict("kernels", "ok", ", ".join(f"{name} {version(name)}" for name in names))


def _speed(_config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    if not torch.cuda.is_available():
        return
    rate = gemm_tflops()
    yield Verdict("GEMM", "ok", f"{rate:.0f} TFLOP/s in bf16")


def _all_reduce(_config: RunConfig | None, ranks: Ranks) -> Iterator[Verdict]:
    if ranks.world_size == 1:
        yield Verdict("all-reduce", "ok", "one process; start it with torchrun or srun to test the network")
        return
    cuda = torch.cuda.is_available()
    group = dist.new_group(backend="nccl" if cuda else "gloo")
    size, repeats = (2**26, 10) if cuda else (2**20, 3)
    value = torch.full((size,), float(ranks.rank + 1), device="cuda" if cuda else "cpu")
    dist.all_reduce(value, group=group)
    right = ranks.world_size * (ranks.world_size + 1) / 2
    if not bool((value == right).all()):
        yield Verdict("all-reduce", "failed", f"{ranks.world_size} processes sum to {value[0]:g}, not to {right:g}")
        return
    seconds = sum(timed(lambda: dist.all_reduce(value, group=group), value.device, repeats=repeats))
    rate = 2 * (ranks.world_size - 1) / ranks.world_size * 4 * size * repeats / seconds
    yield Verdict("all-reduce", "ok", f"{ranks.world_size} processes, {rate / 1e9:.2f} GB/s each")


def _memory(config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    if config is None or config.hardware.accelerator == "cpu" or not torch.cuda.is_available():
        return
    needed, has = estimate_memory(config).needed, torch.cuda.get_device_properties(0).total_memory
    text = f"a step needs about {needed / GIB:.1f} of {has / GIB:.1f} GiB"
    more = "" if needed <= has else "; see `python -m pipelines.doctor memory`"
    yield Verdict("GPU memory", "ok" if needed <= has else "failed", text + more)


def _files(config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    if config is None:
        return
    if config.scenes is not None:
        yield Verdict("files", "ok", "tokenizers and data are embedded: the run makes what is missing")
    else:
        model = config.model
        yield _tried("tokenizer", lambda: build_tokenizer(model), model.tokenizer)
        if model.vq:
            yield _tried("VQ tokenizer", lambda: build_vq(model), model.vq)
        if "mmu" in STAGES[config.stage.name].tasks:
            yield _tried("vision encoder", lambda: build_vision(model.vision).weights_report(), model.vision.kind)
    if _saved(config):
        return  # its checkpoint holds all weights, and the files it started from may be gone
    if config.pretrained:
        yield _tried("pretrained", lambda: weight_files(Path(config.pretrained)), config.pretrained)
    for path in map(Path, config.init_from):
        complete = (path / COMPLETE).is_file() or not (path / CONFIG).is_file()
        if not path.is_dir():
            yield Verdict("init_from", "failed", f"{path} does not exist")
        elif not (path / MANIFEST).is_file() and not any(path.glob(f"checkpoints/step-*/{MANIFEST}")):
            yield Verdict("init_from", "failed", f"{path} holds no checkpoint; train that run first")
        else:
            text = "exists" if complete else "is not complete yet"
            yield Verdict("init_from", "ok" if complete else "warning", f"{path} {text}")


def _tried(name: str, look: Callable[[], object], text: str) -> Verdict:
    try:
        look()
    except USER_ERRORS as error:
        return Verdict(name, "failed", str(error))
    return Verdict(name, "ok", text)


def _same_tokenizers(config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    """Whether the tokenizers are those of the weights that the run goes on from, or starts from."""
    if config is None or not Path(config.model.tokenizer).is_file():
        return
    saved = _newest(config.folder)
    if saved is None and not config.pretrained and not config.init_from:
        return

    def compare() -> None:
        files = ModelFiles.of(build_tokenizer(config.model), build_vq(config.model))
        if saved is not None:
            checkpoint, facts = saved
            files.agreed(ModelFiles.stored(facts, str(checkpoint)), str(checkpoint), config.model, warn)
            return
        agree_with_pretrained(config, files, draws="t2i" in STAGES[config.stage.name].tasks)
        for path in config.init_from:
            if (start := _newest(Path(path))) is not None:
                agree_with_stage(config, files, path, start[1])

    yield _tried("same tokenizers", compare, "those of the weights, as far as these tell")


def _newest(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint at ``path``, or the newest one of a run folder that can be read, with its facts.

    Damaged ones are passed over, as by training.
    """
    folders = [path] if (path / MANIFEST).is_file() else step_folders(path / CHECKPOINTS)
    for folder in reversed(folders):
        if (folder / MANIFEST).is_file():
            with suppress(*USER_ERRORS):
                return folder, read_facts(folder)
    return None


def _data(config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    if config is None or config.scenes is not None:
        return
    tokenizer, vq = build_tokenizer(config.model), build_vq(config.model)
    yield from _read("data", build_data(config, tokenizer, vq).samples)
    yield from _read("data.val", build_validation(config, tokenizer, vq))


def _read(name: str, opened: Mapping[Task, Samples]) -> Iterator[Verdict]:
    """Read some samples of each task."""
    for task, samples in opened.items():
        size = len(samples.shards)
        indices = np.unique(np.linspace(0, size - 1, LOOK_AT).astype(np.int64))
        start = time.perf_counter()
        fetched = samples.fetch(Places(np.zeros_like(indices), indices))
        rate = len(indices) / (time.perf_counter() - start)
        bad = [] if isinstance(fetched, dict) else fetched[2]
        text = f"{size:,} samples; {len(indices)} of them read, {rate:.0f} per second"
        if bad:
            yield Verdict(f"{name}, {task}", "warning", f"{text}; {len(bad)} could not be used, first {bad[0]}")
        else:
            yield Verdict(f"{name}, {task}", "ok", text)


def _disk(config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    if config is None:
        return
    folder = _existing(config.folder)
    # the weights, and two moments per trained weight; a new checkpoint is written before an old one is deleted
    one = sum(4 * p.numel() * (3 if p.requires_grad else 1) for p in planned_model(config).parameters())
    there = sum(path.stat().st_size for checkpoint in _saved(config) for path in checkpoint.iterdir())
    needed = max(one, one * (config.checkpoint.keep_last + 1 + bool(config.checkpoint.best)) - there)
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free > needed else "failed"
    text = f"{free / GIB:.1f} GiB are free in {folder}; its checkpoints will take up to {needed / GIB:.1f} GiB more"
    yield Verdict("disk", state, text)
    probe = folder / f".clock-{os.getpid()}"
    probe.touch()
    skew = abs(probe.stat().st_mtime - time.time())
    probe.unlink()
    text = f"the clocks of the file system of {folder} and of this machine differ by {skew:.1f} s"
    yield Verdict("clock", "ok" if skew <= CLOCK_SKEW else "warning", text)


def _tracking(config: RunConfig | None, _ranks: Ranks) -> Iterator[Verdict]:
    if config is None:
        return
    mode, why = tracking_mode(config.tracking)
    yield Verdict("W&B", "ok", why or mode)


def _saved(config: RunConfig) -> list[Path]:
    """The checkpoints of the run so far."""
    return step_folders(config.folder / CHECKPOINTS)


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.resolve()
    while not folder.is_dir():
        folder = folder.parent
    return folder


CHECKS: tuple[Check, ...] = (
    _packages,
    _gpus,
    _kernels,
    _speed,
    _all_reduce,
    _memory,
    _files,
    _same_tokenizers,
    _data,
    _disk,
    _tracking,
)
