"""Evaluate trained weights with the measures of their configuration.

    python -m pipelines.evaluate RUN [--measures MEASURE ...] [--score-only | --fresh] [key=value ...]

Examples:
    python -m pipelines.evaluate runs/demo_unified
    python -m pipelines.evaluate runs/demo_unified --measures pope gqa
    python -m pipelines.evaluate runs/demo_unified --measures fid --fresh evaluation.fid.temperature=0.9
    python -m pipelines.evaluate runs/demo_unified --measures speed "evaluation.speed={}"
    python -m pipelines.evaluate runs/demo_unified --score-only
    python -m pipelines.evaluate runs/demo_unified/checkpoints/step-000000500
    torchrun --nproc-per-node 8 -m pipelines.evaluate runs/stage2_unified     # or srun: one process per GPU
    python -m pipelines.evaluate configs/stage2_unified.yaml pretrained=omnimamba.safetensors run.dir=runs/published

RUN is a run folder (its latest checkpoint) or its config.yaml, one of its checkpoints, a folder of pipelines.export, or
a configuration file with pretrained=... that names published weights.

Predictions go to RUN/records/<step>/<measure>/, results to RUN/records/<step>/results.json. An interrupted evaluation
continues from its last record. --score-only scores existing predictions again.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.run.console import run_verb, say, split_overrides
from pipelines.run.output import outlived_output, show_table

if TYPE_CHECKING:
    from rich.table import Table

    from callbacks.measures.measure import EvaluationContext, Measure, Result
    from pipelines.run.ranks import Ranks


def main() -> None:
    """Parse the command line, evaluate and print the results."""
    arguments, overrides = _parse()
    # imported here to keep --help fast; and this first, so that a wrong word is told before torch is loaded
    from pipelines.run.words import check_trained

    check_trained(arguments.run, overrides)
    from callbacks.measures.registry import build_measures, build_mini_measures
    from callbacks.measures.running import on_all_ranks, run_measure
    from pipelines.run.counting import CountProgress
    from pipelines.run.ranks import process_group
    from pipelines.run.trained import context_of, load_trained, trained_config

    config = trained_config(arguments.run, overrides)
    if arguments.mini and not config.evaluation.mini:
        raise ValueError("--mini needs evaluation.mini=N, the number of samples, which this run does not set")
    build = build_mini_measures if arguments.mini else build_measures
    measures = choose(build(config.evaluation), arguments.measures)
    with outlived_output():  # what is printed is in results.json, too
        with process_group(timedelta(minutes=config.hardware.timeout_minutes)) as ranks:
            trained = load_trained(arguments.run, overrides, draws=any(measure.draws for measure in measures))
            context = context_of(trained, ranks)
            on_all_ranks(lambda: _check(measures, context, fresh=arguments.fresh))
            results: dict[str, Result] = {}
            for measure in measures:
                if ranks.leads:
                    say(f"{measure.name}: {len(measure.sample_ids())} samples")
                with CountProgress(_title(measure, ranks), then="scoring") as progress:
                    told = replace(context, progress=progress.show) if ranks.leads else context
                    result = run_measure(measure, told, generate=not arguments.score_only)
                if result is not None:  # this process is rank 0
                    results[measure.name] = result
        if ranks.leads:
            title = f"{context.folder} at step {context.step}"
            show_table(result_table(results, title=title, details=arguments.details))
            say(f"results: {context.records / 'results.json'}")


def _title(measure: "Measure", ranks: "Ranks") -> str:
    """The name of a measure, and whose samples are counted."""
    return measure.name if ranks.world_size == 1 else f"{measure.name} (rank 0 of {ranks.world_size})"


def _check(measures: "Sequence[Measure]", context: "EvaluationContext", *, fresh: bool) -> None:
    """Let every measure check its files, and delete the records of this step if ``fresh``."""
    for measure in measures:
        measure.check(context)
        if fresh and not context.rank:
            measure.discard(context)


def choose(measures: "Sequence[Measure]", keys: Sequence[str] | None) -> "list[Measure]":
    """The measures with these keys; all of them if None.

    Raises:
        ValueError: a measure is unknown or not configured, or no measure is configured.
    """
    from callbacks.measures.registry import KEYS

    configured = {measure.key: measure for measure in measures}
    for key in keys or ():
        if key not in KEYS:
            raise ValueError(f"unknown measure {key!r}; known are {', '.join(KEYS)}")
        if key not in configured:
            raise ValueError(
                f"measure {key} is not configured in this run (it has {', '.join(configured) or 'none'}); "
                f"set evaluation.{key}.* on the command line"
            )
    if not configured:
        raise ValueError("this run has no evaluation configured; set evaluation.pope.folder=... and the like")
    return [measure for key, measure in configured.items() if keys is None or key in keys]


def result_table(results: "Mapping[str, Result]", *, title: str, details: bool = False) -> "Table":
    """One row per metric: value, standard error, trivial baseline, the paper's value, number of samples."""
    from rich.table import Table

    from modules.metrics.paper import paper_value

    table = Table("measure", "metric", title=title)
    for column in ("value", "± std err", "trivial", "paper", "N"):
        table.add_column(column, justify="right")
    for name, result in results.items():
        metrics = {key: value for key, value in result.metrics.items() if details or "/" not in key}
        for key, value in metrics.items():
            error, baseline = result.standard_errors.get(key), result.baselines.get(key)
            beside = map(_number, (error, baseline, paper_value((name, key))))
            table.add_row(name, key, f"{value:.4f}", *beside, str(result.n(key)))
        if not metrics:
            table.add_row(name, *5 * ["-"], str(result.protocol["n"]))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run folder, a checkpoint, an exported folder, or a YAML file"
    )
    parser.add_argument(
        "--measures",
        "--tasks",
        nargs="+",
        metavar="MEASURE",
        help="pope gqa ..., or pope,gqa,... (default: all that are configured)",
    )
    parser.add_argument("--mini", action="store_true", help="evaluate on evaluation.mini samples, as during training")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--score-only", action="store_true", help="generate nothing, score the existing records")
    how.add_argument("--fresh", action="store_true", help="delete this step's records of these measures first")
    parser.add_argument("--details", action="store_true", help="also show the metrics of single splits and types")
    arguments, rest = parser.parse_known_args()
    # key=value words may be anywhere, also after --measures
    overrides = split_overrides(parser, rest)
    if arguments.measures is not None:
        overrides += [word for word in arguments.measures if "=" in word]
        names = [name for word in arguments.measures if "=" not in word for name in word.split(",")]
        arguments.measures = [name for name in names if name] or None
    return arguments, overrides


if __name__ == "__main__":
    run_verb(main)
