"""Train one stage.

    python -m pipelines.train CONFIG.yaml [key=value ...]

Examples:
    python -m pipelines.train configs/smoke_unified.yaml
    python -m pipelines.train configs/smoke_unified.yaml run.dir=/scratch/me/smoke trainer.max_steps=20
    python -m pipelines.train runs/smoke_unified/config.yaml       # the same run again: it resumes, or is complete

Without run.dir= the run folder is runs/<name>/. Under `wandb agent` it is runs/sweeps/<sweep>/<run>/, with W&B's ids.

A run folder with a checkpoint is resumed; one with COMPLETE is left alone. On SIGUSR1, SIGUSR2 or SIGTERM the run
saves the current step, leaves PREEMPTED in its folder and ends with exit code 75.
"""

import argparse
import os
from pathlib import Path

from modules import signals
from modules.run_files import PROVENANCE
from pipelines.run.console import run_verb


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="a YAML file, for example one of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, for example trainer.max_steps=20")
    arguments = parser.parse_args()

    # imported here to keep --help fast
    from pipelines.run.config import load
    from pipelines.run.fit import fit
    from pipelines.run.texts import override

    overrides = list(arguments.overrides)
    if not any(word.startswith("run.dir=") for word in overrides):
        if (arguments.config.parent / PROVENANCE).is_file():
            # the config.yaml of a run folder means that run, even if the folder was moved
            overrides.append(override("run.dir", arguments.config.parent))
        elif "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ:
            # trials of a sweep share one configuration file, but each has its own run
            run = Path("runs/sweeps", os.environ["WANDB_SWEEP_ID"], os.environ["WANDB_RUN_ID"])
            overrides.append(override("run.dir", run))
    fit(load(arguments.config, overrides))


if __name__ == "__main__":
    signals.listen()  # before anything is loaded: an unhandled signal to stop would kill the process
    try:
        run_verb(main)
    finally:
        signals.ignore()  # when the first rank ends, srun stops the others: each must keep its own exit code
