"""Measures how training scales over the GPUs of this machine: one run after the other, each in processes of its own.

A GPU's micro-batch stays the same (weak scaling). A run's rate is compared with that of one GPU under DDP, measured on
the same machine; rates of other machines are kept in the same file and never compared.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from typing_extensions import TypedDict

from modules.reading import read_json
from modules.stages import STAGES
from pipelines.run.hardware import Strategy

RUN = [sys.executable, "-m", "pipelines.benchmark", "train"]


@dataclass(frozen=True)
class ScalingRun:
    """What one run measured. A later run of the same first four values replaces an earlier one."""

    machine: str
    """The name and number of its first GPU."""
    stage: str
    strategy: str
    devices: int
    tokens_per_second: float
    peak_gib: float | None
    """Of the first GPU; None on a CPU."""
    communication_share: float | None
    """Share of a step in which the first GPU communicates; None on a CPU."""
    exposed_share: float | None
    """Share of a step in which it does nothing else meanwhile."""
    times_one: float | None = None
    """The rate as a multiple of one GPU's under DDP, in the same stage on the same machine; None if not measured."""

    def is_of(self, other: "ScalingRun") -> bool:
        """Whether both measure the same."""
        mine, its = ((run.machine, run.stage, run.strategy, run.devices) for run in (self, other))
        return mine == its


class _File(TypedDict):
    runs: list[dict[str, str | int | float | None]]


@dataclass(frozen=True, kw_only=True)
class ScalingBenchmarkConfig:
    """What to run."""

    stages: tuple[str, ...] = ("unified_finetune",)
    strategies: tuple[str, ...] = ("ddp", "zero2")
    devices: tuple[int, ...] = ()
    """Numbers of GPUs; empty: 1, 2, 4, ... as far as this machine has them."""
    accelerator: Literal["gpu", "cpu"] = "gpu"
    train: tuple[str, ...] = ()
    """More words for `pipelines.benchmark train`, such as steps=5."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        unknown = [name for name in self.stages if name not in STAGES]
        known = get_args(Strategy)
        odd = [name for name in self.strategies if name not in known]
        found = [f"strategies: there is no strategy {name}; there are {', '.join(known)}" for name in odd]
        found += [f"stages: there is no stage {name}; there are {', '.join(STAGES)}" for name in unknown]
        if self.accelerator == "cpu" and not self.devices:
            found.append("devices=[] counts GPUs; for a CPU, name the numbers of processes: devices=[1,2]")
        if any(count < 1 for count in self.devices):
            found.append(f"devices={list(self.devices)} must be at least 1 each")
        return found


def measure_scaling(
    config: ScalingBenchmarkConfig,
    before: Sequence[ScalingRun],
    say: Callable[[str], None],
    keep: Callable[[list[ScalingRun]], None],
) -> list[ScalingRun]:
    """Measure; returns all runs, those of ``before`` too. ``keep`` gets them after each run.

    Raises:
        ValueError: there is no GPU; or a run failed: the message ends with its last lines.
    """
    counts = config.devices or tuple(n for n in (1, 2, 4, 8, 16) if n <= torch.cuda.device_count())
    if not counts:
        raise ValueError("this machine has no GPU; for its CPU, use accelerator=cpu devices=[1,2]")
    runs = list(before)
    for stage in config.stages:
        for strategy in config.strategies:
            for devices in counts:
                say(f"{stage}, {strategy}, {devices}")
                run = _measured(config, stage, strategy, devices)
                runs = with_ratios([each for each in runs if not each.is_of(run)] + [run])
                keep(runs)
    return runs


def with_ratios(runs: Sequence[ScalingRun]) -> list[ScalingRun]:
    """The runs with ``times_one``."""
    one = {
        (run.machine, run.stage): run.tokens_per_second for run in runs if run.devices == 1 and run.strategy == "ddp"
    }
    rates = [one.get((run.machine, run.stage)) for run in runs]
    return [
        replace(run, times_one=run.tokens_per_second / rate if rate else None)
        for run, rate in zip(runs, rates, strict=True)
    ]


def read_runs(path: Path) -> list[ScalingRun]:
    """The runs of an earlier call's file; none if there is no file.

    Raises:
        ValueError: the file is something else.
    """
    if not path.is_file():
        return []
    rows: Any = read_json(path, _File, "file with runs")["runs"]
    try:
        return [ScalingRun(**row) for row in rows]
    except TypeError as error:
        raise ValueError(f"{path}: its runs are of another version ({error}); name another file") from error


def words_of(config: ScalingBenchmarkConfig, stage: str, strategy: str, devices: int) -> list[str]:
    """The settings of `pipelines.benchmark train` for one run."""
    gpu = config.accelerator == "gpu"
    return [
        *(f"stage={stage}", f"hardware.accelerator={config.accelerator}", f"hardware.devices={devices}"),
        *(f"hardware.strategy={strategy}", "baseline=false", f"profile={str(gpu).lower()}", *config.train),
    ]


def _measured(config: ScalingBenchmarkConfig, stage: str, strategy: str, devices: int) -> ScalingRun:
    gpu, words = config.accelerator == "gpu", words_of(config, stage, strategy, devices)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.json"
        done = subprocess.run([*RUN, *words, "--json", str(path)], capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise ValueError(f"{stage} under {strategy} on {devices} failed with code {done.returncode}:\n{last}")
        found = json.loads(path.read_text(encoding="utf-8"))
    profile = found.get("profile") or {}
    return ScalingRun(
        machine=_machine() if gpu else "CPU",
        stage=stage,
        strategy=strategy,
        devices=devices,
        tokens_per_second=found["ours"]["tokens_per_second"],
        peak_gib=found["ours"]["peak_gib"],
        communication_share=profile.get("communication_share"),
        exposed_share=profile.get("exposed_share"),
    )


def _machine() -> str:
    return f"{torch.cuda.get_device_name()} {str(torch.cuda.get_device_properties(0).uuid)[:8]}"
