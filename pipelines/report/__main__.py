"""Write one HTML page about runs, or upload their whole history to Weights & Biases.

    python -m pipelines.report RUN [RUN ...] [--out report.html] [--reference FILE]
    python -m pipelines.report sync RUN [RUN ...] [--offline] [--project PROJECT] [--entity ENTITY]

Examples:
    python -m pipelines.report runs/demo_unified
    python -m pipelines.report runs/demo_mmu runs/demo_t2i runs/demo_unified --out runs/report.html
    python -m pipelines.report runs/*                              # what is no run is left out, and named
    python -m pipelines.report runs/stage2_unified --reference runs/stage2_before/metrics.jsonl
    python -m pipelines.report sync runs/stage2_unified
    python -m pipelines.report sync runs/stage2_unified --offline

The page shows all RUNs: scores next to the paper's and to trivial baselines, curves, pictures, answers, configuration
and attempts. It is a single file that needs neither network nor scripts; its one script shows the values under the
pointer.

--reference FILE draws a kept curve beside those of the runs: a metrics.jsonl, or a CSV file that begins with the line
step,key,value and has keys such as train/loss_t2i.

sync builds one W&B run from RUN/metrics.jsonl and uploads it. It replaces whatever the server has of that run. With
--offline it only says how to upload it from another machine. --project and --entity (a user or a team) name another
place at W&B than the run's own. Name a run folder called sync as ./sync.
"""

import argparse
import sys
from pathlib import Path

from pipelines.run.console import run_verb, say, warn


def main() -> None:
    """Parse the command line and write the page, or synchronise."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sync = sys.argv[1:2] == ["sync"]
    if sync:
        parser.add_argument("verb", choices=["sync"], help=argparse.SUPPRESS)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    if sync:
        parser.add_argument("--offline", action="store_true", help="build the W&B run, but do not upload it")
        parser.add_argument("--project", help="W&B project (default: the run's tracking.project)")
        parser.add_argument("--entity", help="W&B user or team (default: the run's tracking.entity)")
    else:
        parser.add_argument(
            "--out", type=Path, default=Path("report.html"), help="where the page goes (default: report.html)"
        )
        parser.add_argument(
            "--reference", type=Path, metavar="FILE", help="a kept curve: metrics.jsonl, or .csv with step,key,value"
        )
    arguments = parser.parse_args()
    # imported here to keep --help fast
    if sync:
        from pipelines.report.sync import sync_run

        for run in arguments.runs:
            sync_run(run, offline=arguments.offline, project=arguments.project, entity=arguments.entity)
        return
    from pipelines.report.page import write_report
    from pipelines.report.read import only_runs
    from pipelines.run.counting import PieceProgress

    with PieceProgress("report") as progress:
        runs = only_runs(arguments.runs, warn)
        out = write_report(runs, arguments.out, arguments.reference, progress=progress.show)
    say(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB; open it in any browser)")


if __name__ == "__main__":
    run_verb(main)
