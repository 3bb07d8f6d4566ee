"""Examine this installation.

    python -m pipelines.doctor reference STEM.json

Examples:
    python -m pipelines.doctor reference tests/unit/reference/reference.json
    python -m pipelines.doctor reference tests/unit/reference/vision.json

`reference` loads the weights beside STEM.json (STEM_weights.safetensors), computes what was recorded of the published
model (STEM_tensors.safetensors) on the device it runs on, and prints a table of relative errors. STEM.json tells what
that is: logits, losses, gradients and greedy ids of the language model, features of the ViTs, or codes and pictures of
the VQ tokenizer. It ends with exit code 1 where an error is above its tolerance.
"""

import argparse
import sys
from pathlib import Path

from pipelines.console import run_verb, say


def main() -> None:
    """Parse the command line and run the examination."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    examinations = parser.add_subparsers(dest="examination", required=True)
    reference = examinations.add_parser("reference", help="compare the model with recorded numbers")
    reference.add_argument("file", type=Path, metavar="STEM.json")
    arguments = parser.parse_args()

    from pipelines.reference import compare_with_reference  # late: --help answers at once

    comparison = compare_with_reference(arguments.file)
    for line in comparison.lines():
        say(line)
    if not comparison.passed:
        sys.exit(1)


if __name__ == "__main__":
    run_verb(main)
