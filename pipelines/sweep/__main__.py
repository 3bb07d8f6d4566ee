"""Run a sweep without a server, one trial after another.

    python -m pipelines.sweep SWEEP.yaml [--trials N] [--folder FOLDER] [key=value ...]

Examples:
    python -m pipelines.sweep configs/sweeps/smoke.yaml                        # a grid: all of its points
    python -m pipelines.sweep configs/sweeps/lr_rank.yaml --trials 12 hardware.devices=8
    sbatch --array=0-5%2 slurm/sweep.sh configs/sweeps/smoke.yaml              # in parallel, on SLURM
    wandb sweep configs/sweeps/lr_rank.yaml                                    # the same file, with W&B's server

The overrides apply to every trial. After a kill, start the same command again: finished trials are not repeated, and
the unfinished trial continues from its checkpoint. Install W&B's engine once with `make sweeps`.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.run.console import run_verb

if TYPE_CHECKING:
    from pipelines.sweep.file import Sweep


def main() -> None:
    """Parse the command line and run the sweep."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="a sweep in W&B's format, for example one of configs/sweeps/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides for all trials")
    parser.add_argument("--trials", type=int, help="total number (default: run_cap of the file, or the whole grid)")
    parser.add_argument("--folder", type=Path, help="where the trials go (default: runs/sweeps/<name of the file>)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the suggestions (default: 0)")
    parser.add_argument("--max-failures", type=int, default=3, help="stop after this many failed trials (default: 3)")
    parser.add_argument("--retry", action="store_true", help="start failed trials again")
    parser.add_argument(
        "--propose", type=int, metavar="K", help="only print trial K's arguments for pipelines.train, one per line"
    )
    arguments = parser.parse_intermixed_args()

    # imported here to keep --help fast; and this first, so that a wrong word is told before torch is loaded
    from pipelines.run.overrides import ConfigError, dotlist, refuse_unknown_words

    refuse_unknown_words(arguments.overrides)
    from pipelines.run.config import RunConfig
    from pipelines.sweep.file import read_sweep
    from pipelines.sweep.runner import Runner
    from pipelines.sweep.trials import SweepFolder

    sweep = read_sweep(arguments.sweep)
    dotlist(arguments.overrides, RunConfig)
    if taken := [word for word in arguments.overrides if word.startswith("run.dir=")]:
        raise ConfigError(f"{taken[0]}: every trial has its own run folder; --folder says where they are")
    folder = SweepFolder(arguments.folder or Path("runs/sweeps") / arguments.sweep.stem)
    runner = Runner(sweep, folder, tuple(arguments.overrides), arguments.seed)
    if arguments.propose is not None:
        print(*runner.propose(arguments.propose), sep="\n", flush=True)  # not said: these words are run as they are
        return
    runner.run(_limit(sweep, arguments.trials), arguments.max_failures, retry=arguments.retry)


def _limit(sweep: "Sweep", trials: int | None) -> int:
    from pipelines.run.overrides import ConfigError

    limit = trials if trials is not None else sweep.content.get("run_cap")
    if limit is None and sweep.method != "grid":
        raise ConfigError(f"{sweep.path}: method={sweep.method} has no end; set the number of trials with --trials N")
    if limit is not None and limit < 1:
        raise ConfigError(f"--trials {limit} must be at least 1")
    return sys.maxsize if limit is None else limit


if __name__ == "__main__":
    run_verb(main)
