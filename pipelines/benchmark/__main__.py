"""Measure how fast parts of the pipeline are on this machine; prints a table, and writes JSON with --json.

Examples:
    python -m pipelines.benchmark data folder=data/bench --json data.json
    python -m pipelines.benchmark data folder=data/bench deep_samples=100000 seconds=1
    python -m pipelines.benchmark train stage=t2i_pretrain "micro_batch={t2i: 90}" --json train.json
    python -m pipelines.benchmark train --profile baseline=false
    python -m pipelines.benchmark layer hardware.scan=mamba_ssm
    python -m pipelines.benchmark train hardware.strategy=zero2 hardware.devices=2
    python -m pipelines.benchmark sizes "lengths=[329,8192]" hardware.recompute=block
    python -m pipelines.benchmark scaling "devices=[1,2]" "train=[steps=10]" --json scaling.json
    python -m pipelines.benchmark generate "batches=[1,16]" --json generate.json
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.run.console import run_verb, say
from pipelines.run.output import show_table

if TYPE_CHECKING:
    from pipelines.benchmark.data import DataResult


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    _mode(
        commands,
        "data",
        _data,
        "reading, decoding and mixing samples, against plain webdataset; needs folder=...",
    )
    train = _mode(commands, "train", _train, "training steps of a stage, compared with the published loop")
    train.add_argument("--profile", action="store_true", help="also show which kernels take a step's time (GPU)")
    _mode(commands, "layer", _layer, "one block on a training row, part by part, and each part's floor (GPU)")
    _mode(commands, "sizes", _sizes, "training steps of many batches and lengths, until memory ends")
    _mode(commands, "scaling", _scaling, "training on 1, 2, 4, ... GPUs of this machine; later calls add to its --json")
    _mode(commands, "generate", _generate, "drawing images in several batch sizes, compared with mamba_ssm")
    arguments = parser.parse_args()
    arguments.run(arguments)


def _mode(commands: Any, name: str, run: Callable[[argparse.Namespace], None], told: str) -> argparse.ArgumentParser:
    mode: argparse.ArgumentParser = commands.add_parser(name, help=told)
    mode.add_argument("overrides", nargs="+" if name == "data" else "*", metavar="key=value", help="settings")
    mode.add_argument("--json", type=Path, help="file for the measurements")
    mode.set_defaults(run=run)
    return mode


def _data(arguments: argparse.Namespace) -> None:
    from pipelines.benchmark.data import DataBenchmarkConfig, as_json, measure_data
    from pipelines.run.overrides import parse_overrides

    config = parse_overrides(DataBenchmarkConfig, arguments.overrides)
    lines = measure_data(config, say)
    _show(lines)
    if arguments.json:
        arguments.json.write_text(as_json(config, lines), encoding="utf-8")
        say(f"written to {arguments.json}")


def _train(arguments: argparse.Namespace) -> None:
    from lightning.pytorch.utilities import rank_zero_only
    from rich.table import Table

    from pipelines.benchmark.train import TrainBenchmarkConfig, measure_train
    from pipelines.run.overrides import parse_overrides

    profiled = ["profile=true"] if arguments.profile else []
    found = measure_train(parse_overrides(TrainBenchmarkConfig, [*arguments.overrides, *profiled]))
    if getattr(rank_zero_only, "rank", 0):
        return
    columns = ("", "s/step", "tokens/s", "times published a GPU", "peak GiB", "model TFLOP/s", "of GEMM")
    rate = _number(found["gemm_tflops"], ".0f")
    table = Table(*columns, title=f"{found['gpu']}, torch {found['torch']}, bf16 GEMM {rate} TFLOP/s")
    table.add_column("loss", no_wrap=True)
    published = found.get("published", {}).get("tokens_per_second")
    ranks = {"ours": found["config"]["hardware"]["devices"] * found["config"]["hardware"]["nodes"]}
    for name in ("ours", "published", "mamba_ssm"):
        if row := found.get(name):
            table.add_row(
                name,
                f"{row['seconds_per_step']:.3f}",
                f"{row['tokens_per_second']:,.0f}",
                _number(published and row["tokens_per_second"] / ranks.get(name, 1) / published, ".2f"),
                _number(row["peak_gib"], ".1f"),
                _number(row["tflops"], ".3g"),
                _number(row["of_gemm"], ".1%"),
                f"{row['first_loss']:.3f} -> {row['last_loss']:.3f}",
            )
    show_table(table)
    if profile := found.get("profile"):
        _show_profile(profile)
    _keep(found, arguments.json)


def _layer(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from pipelines.benchmark.layer import LayerBenchmarkConfig, measure_layer
    from pipelines.run.overrides import parse_overrides

    found = measure_layer(parse_overrides(LayerBenchmarkConfig, arguments.overrides))
    title = f"{found['gpu']}, torch {found['torch']}: a block, {found['ms']:.2f} ms forward and backward"
    table = Table("part", "ms", "floor ms", "launches", title=title)
    for part in found["parts"]:
        floor = _number(part["floor_ms"], ".2f")
        table.add_row(part["name"], f"{part['ms']:.2f}", floor, f"{part['launches']:.0f}")
    show_table(table)
    _show_kernels(found["kernels"], found["ms"], "its kernels")
    _keep(found, arguments.json)


def _sizes(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from pipelines.benchmark.sizes import SizesBenchmarkConfig, measure_sizes
    from pipelines.run.overrides import parse_overrides

    found = measure_sizes(parse_overrides(SizesBenchmarkConfig, arguments.overrides), say)
    title = f"{found['gpu']}, torch {found['torch']}"
    table = Table("length", "fixed ms", "us a position", "largest batch", "memory ended at", title=title)
    for line in found["lines"]:
        figures = (f"{line['fixed_ms']:.1f}", f"{line['us_a_position']:.2f}", str(line["largest"]))
        table.add_row(str(line["length"]), *figures, _number(line["ended"], "d"))
    show_table(table)
    _keep(found, arguments.json)


def _scaling(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from pipelines.benchmark.scaling import ScalingBenchmarkConfig, measure_scaling, read_runs
    from pipelines.run.overrides import parse_overrides

    config = parse_overrides(ScalingBenchmarkConfig, arguments.overrides)
    before = read_runs(arguments.json) if arguments.json else []
    runs = measure_scaling(
        config, before, say, lambda runs: _keep({"runs": [asdict(run) for run in runs]}, arguments.json)
    )
    columns = ("stage", "strategy", "devices", "tokens/s", "times one", "peak GiB", "exchange", "exchange alone")
    table = Table(*columns, title="weak scaling; ratios within one machine")
    for run in runs:
        table.add_row(
            *(run.stage, run.strategy, str(run.devices), f"{run.tokens_per_second:,.0f}"),
            *(_number(run.times_one, ".2f"), _number(run.peak_gib, ".1f")),
            *(_number(run.communication_share, ".1%"), _number(run.exposed_share, ".1%")),
        )
    show_table(table)


def _show_kernels(kernels: list[tuple[str, float, float]], whole: float, title: str) -> None:
    from rich.table import Table

    table = Table("kernel", "ms", "share", "launches", title=title)
    for name, milliseconds, count in kernels:
        table.add_row(name, f"{milliseconds:.2f}", f"{milliseconds / whole:.1%}", f"{count:,.0f}")
    show_table(table)


def _show_profile(profile: dict[str, Any]) -> None:
    idle = f"GPU idle {profile['idle_share']:.1%}"
    title = f"a step: {profile['step_ms']:.0f} ms, {idle}, {profile['launches']:,.0f} launches"
    _show_kernels(profile["kernels"], profile["step_ms"], title)


def _generate(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from pipelines.benchmark.generate import GenerateBenchmarkConfig, measure_generate
    from pipelines.run.overrides import parse_overrides

    found = measure_generate(parse_overrides(GenerateBenchmarkConfig, arguments.overrides), say)
    columns = ("batch", "images/s", "prefill s", "loop s", "VQ decode s", "floor s", "mamba_ssm s", "peak GiB")
    table = Table(*columns, title=f"{found['gpu']}, torch {found['torch']}")
    for row in found["batches"]:
        keys = ("prefill_s", "loop_s", "decode_s", "floor_s", "baseline_s", "peak_gib")
        table.add_row(str(row["batch"]), f"{row['images_per_s']:.2f}", *(_number(row[key], ".3f") for key in keys))
    show_table(table)
    _keep(found, arguments.json)


def _number(value: float | int | None, form: str) -> str:
    """A value for the table; a dash if it was not measured."""
    return "-" if value is None else format(value, form)


def _keep(found: dict[str, Any], path: Path | None) -> None:
    """Write ``found`` to ``path``, if there is one; JSON has no NaN."""
    if path is not None:
        path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        say(f"written to {path}")


def _show(lines: "list[DataResult]") -> None:
    from rich.table import Table

    table = Table("measure", "unit", "ours", "webdataset", "ratio", "target")
    for column in table.columns[2:5]:
        column.justify = "right"
    for line in lines:
        beside = (
            ("-", "-") if line.webdataset is None else (f"{line.webdataset:,.0f}", f"{line.ours / line.webdataset:.1f}")
        )
        table.add_row(line.what, line.unit, f"{line.ours:,.0f}", *beside, line.target)
    show_table(table)


if __name__ == "__main__":
    run_verb(main)
