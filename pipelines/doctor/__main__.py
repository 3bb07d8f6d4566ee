"""Examine this installation.

    python -m pipelines.doctor check [CONFIG.yaml [key=value ...]]
    python -m pipelines.doctor memory CONFIG.yaml [key=value ...]
    python -m pipelines.doctor reference STEM.json

Examples:
    python -m pipelines.doctor check configs/stage2_unified.yaml
    torchrun --nproc-per-node 8 -m pipelines.doctor check configs/stage2_unified.yaml    # also the network between GPUs
    python -m pipelines.doctor reference tests/unit/reference/reference.json
    python -m pipelines.doctor reference tests/unit/reference/vision.json
    python -m pipelines.doctor memory configs/stage2_unified.yaml hardware.devices=4 --gpu-gib 40

`check` gives a verdict on everything a run depends on: packages, GPUs, kernels, network, weights, data, disk, clock,
W&B. It ends with exit code 1 if any of them failed.

`reference` compares this model with recorded values of the published one (STEM_tensors.safetensors). It loads the
weights next to STEM.json (STEM_weights.safetensors), computes the same values on this machine's device, and prints a
table of relative errors. STEM.json says what was recorded: logits, losses, gradients and greedy ids of the language
model, features of the ViTs, or codes and pictures of the VQ tokenizer. It ends with exit code 1 if an error is above
its tolerance.

`memory` estimates what a training step needs on each GPU, part by part, and suggests what would need less. It ends
with exit code 1 if that is more than a GPU has: this machine's, or one of --gpu-gib.
"""

import argparse
import sys
from pathlib import Path

from pipelines.run.console import run_verb, say

H100_GIB = 79.1


def main() -> None:
    """Parse the command line and run the examination."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    examinations = parser.add_subparsers(dest="examination", required=True)
    reference = examinations.add_parser("reference", help="compare the model with recorded numbers")
    reference.add_argument("file", type=Path, metavar="STEM.json")
    reference.set_defaults(run=_reference)
    memory = examinations.add_parser("memory", help="estimate what a run needs on each GPU")
    memory.add_argument("config", type=Path, metavar="CONFIG.yaml")
    memory.add_argument("overrides", nargs="*", metavar="key=value")
    memory.add_argument(
        "--gpu-gib", type=float, help=f"memory of a GPU (default: this machine's, else {H100_GIB}, an H100)"
    )
    memory.set_defaults(run=_memory)
    check = examinations.add_parser("check", help="check this machine, and what a run on it depends on")
    check.add_argument("config", type=Path, nargs="?", metavar="CONFIG.yaml")
    check.add_argument("overrides", nargs="*", metavar="key=value")
    check.set_defaults(run=_check)
    arguments = parser.parse_args()
    if not arguments.run(arguments):
        sys.exit(1)


def _check(arguments: argparse.Namespace) -> bool:
    from datetime import timedelta

    from pipelines.run.words import check_training

    file = check_training(arguments.config, arguments.overrides) if arguments.config else None
    from pipelines.doctor.checks import examine
    from pipelines.run.config import load
    from pipelines.run.ranks import process_group

    config = load(file, arguments.overrides) if file else None
    passed = True
    with process_group(timedelta(minutes=10)) as ranks:
        for verdict in examine(config, ranks):
            passed = passed and verdict.state != "failed"
            if ranks.leads or verdict.state == "failed":
                say(f"{verdict.state:<8} {verdict.name:<14} {verdict.text}")
    return passed


def _reference(arguments: argparse.Namespace) -> bool:
    from pipelines.doctor.reference import compare_with_reference  # imported here to keep --help fast

    comparison = compare_with_reference(arguments.file)
    for line in comparison.lines():
        say(line)
    return comparison.passed


def _memory(arguments: argparse.Namespace) -> bool:
    from pipelines.run.words import check_training

    file = check_training(arguments.config, arguments.overrides)
    import torch

    from modules.files import GIB
    from pipelines.run.config import load
    from pipelines.run.memory import estimate_memory, ways_out

    config = load(file, arguments.overrides, tracks=False)
    estimate = estimate_memory(config)
    for line in estimate.lines():
        say(line)
    here = torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else H100_GIB
    has = arguments.gpu_gib or here
    fits = estimate.needed <= has * GIB
    say(
        f"{'with fragmentation and CUDA itself':<44}{estimate.needed / GIB:8.1f} GiB of {has:.1f}: "
        + ("fits" if fits else "does not fit")
    )
    if not fits:
        for words, other in ways_out(config).items():
            say(f"  {words} would need {other.needed / GIB:.1f} GiB")
    return fits


if __name__ == "__main__":
    run_verb(main)
