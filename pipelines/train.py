"""Train one stage.

    python -m pipelines.train CONFIG.yaml [key=value ...] [--smoke | --print-config]
    python -m pipelines.train RUN

Examples:
    python -m pipelines.train configs/smoke_unified.yaml
    python -m pipelines.train configs/smoke_unified.yaml run.dir=/scratch/me/smoke trainer.max_steps=20
    python -m pipelines.train runs/smoke_unified                   # the same run again: it resumes, or is complete
    python -m pipelines.train configs/stage1_mmu.yaml --smoke      # does it work here? nothing of it is kept
    python -m pipelines.train configs/stage1_mmu.yaml optim.lr=2e-3 --print-config

Without run.dir= the run folder is runs/<name>/. Under `wandb agent` it is runs/sweeps/<sweep>/<run>/, with W&B's ids.
docs/configuration.md lists all keys, and `python -m pipelines.keys` prints them.

A run folder with a checkpoint is resumed; one with COMPLETE is left alone. On SIGUSR1, SIGUSR2 or SIGTERM the run
saves the current step, leaves PREEMPTED in its folder and ends with exit code 75.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from modules import signals
from modules.run_files import PROVENANCE
from pipelines.run.console import run_verb, say, split_overrides, warn


def main() -> None:
    """Parse the command line and train."""
    arguments, overrides = _parse()
    # imported here to keep --help fast; and this first, so that a wrong word is told before torch is loaded
    from pipelines.run.texts import override
    from pipelines.run.words import check_training

    file = check_training(arguments.config, overrides)
    if not any(word.startswith("run.dir=") for word in overrides):
        if arguments.config.is_dir() or (file.parent / PROVENANCE).is_file():
            # a run folder, or the config.yaml of one, means that run, even if the folder was moved
            overrides.append(override("run.dir", file.parent))
        elif "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ:
            # trials of a sweep share one configuration file, but each has its own run
            run = Path("runs/sweeps", os.environ["WANDB_SWEEP_ID"], os.environ["WANDB_RUN_ID"])
            overrides.append(override("run.dir", run))
    if arguments.smoke:
        smoke(file, overrides)
        return
    from pipelines.run.config import as_yaml, load
    from pipelines.run.fit import fit

    config = load(file, overrides)
    if arguments.print_config:
        say(as_yaml(config).rstrip("\n"))
        return
    fit(config)


def smoke(file: Path, overrides: Sequence[str]) -> None:
    """Train two steps of the configuration, save, evaluate two samples of each measure, and remove all of it.

    Raises:
        ConfigError: see `load` and `fit`; or another trial of the same run is under way.
    """
    from lightning.pytorch.utilities import rank_zero_only

    from pipelines.run.config import load
    from pipelines.run.fit import fit
    from pipelines.run.smoke import SAMPLES, STEPS, removed, smoke_folder, smoke_words

    wanted = load(file, overrides)
    run = wanted.folder
    config = load(file, [*overrides, *smoke_words(run, validates="val" in wanted.evaluation.sections())])
    leads = getattr(rank_zero_only, "rank", 0) == 0
    with removed(smoke_folder(run), leads=leads, warn=warn):
        fit(config)
    if leads:
        tried = [key for key in config.evaluation.sections() if key != "speed"]  # which never runs on a part
        measures = ", ".join(tried) or "nothing: no measure is configured"
        say(f"smoke: {STEPS} steps, a save, and {SAMPLES} samples of each measure ({measures}) work; nothing is kept")


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config", type=Path, nargs="?", help="a YAML file, for example one of configs/; or a run folder to go on with"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, for example trainer.max_steps=20")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--smoke", action="store_true", help="two steps, one save, one evaluation; nothing is kept")
    instead.add_argument("--print-config", action="store_true", help="print the resolved configuration, and end")
    arguments, rest = parser.parse_known_args()
    return arguments, [*arguments.overrides, *split_overrides(parser, rest)]


if __name__ == "__main__":
    signals.listen()  # before anything is loaded: an unhandled signal to stop would kill the process
    try:
        run_verb(main)
    finally:
        signals.ignore()  # when the first rank ends, srun stops the others: each must keep its own exit code
