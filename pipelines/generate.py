"""Draw a picture, or answer a question about one, with the latest checkpoint of a run.

    python -m pipelines.generate RUN text2image "CAPTION" [--out FILE.png] [--seed N] [--top-k K] ...
    python -m pipelines.generate RUN describe IMAGE "QUESTION" [--short]

Examples:
    python -m pipelines.generate runs/demo_unified text2image "a red circle"
    python -m pipelines.generate runs/demo_unified text2image "a red circle" --seed 1 --top-k 50 --out circle.png
    python -m pipelines.generate runs/demo_unified describe photo.jpg "Is there a red circle in the image?" --short

key=value words change settings of the run, for example hardware.accelerator=cpu.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from modules.run_files import SAMPLES
from pipelines.run.console import run_verb, say, warn

if TYPE_CHECKING:
    from callbacks.measures.pictures import SamplingConfig
    from pipelines.run.config import RunConfig


ANSWER_LENGTH = 64
"""Default for the largest number of tokens of an answer."""


def main() -> None:
    """Parse the command line and generate."""
    arguments, overrides = _parse()
    if arguments.verb == "text2image":
        text2image(arguments, overrides)
    else:
        describe(arguments, overrides)


def text2image(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Draw ``arguments.caption`` and write a PNG.

    Raises:
        ValueError: a setting is out of range, the caption is empty or too long, or the run has no image tokenizer.
        FileExistsError: the file exists and ``--force`` is not given.
        FileNotFoundError: the folder of the file is missing.
    """
    from callbacks.measures.pictures import NO_VQ, draw, require_vq, warn_if_never_empty
    from callbacks.measures.samples import require_short
    from datamodules.images import to_image
    from pipelines.run.compose import build_tokenizer
    from pipelines.run.trained import context_of, load_trained, trained_config

    config = trained_config(arguments.run, overrides)
    sampling = _sampling(arguments, config)
    out = _out(arguments, config.folder)
    if not arguments.caption.strip():
        raise ValueError("the caption is empty; say what to draw")
    if not config.model.vq:
        raise ValueError(NO_VQ)
    require_short(build_tokenizer(config.model), arguments.caption, config.model.caption_length)
    _say_if_untrained(config, "t2i", arguments.run)
    context = context_of(load_trained(arguments.run, overrides))
    vq = require_vq(context)
    warn_if_never_empty(context, "text2image", sampling)
    pixels = vq.decode(draw(context, [arguments.caption], [0], sampling))[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    to_image(pixels).save(out)
    say(str(out))


def describe(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print the answer to ``arguments.question`` about a picture.

    Raises:
        ValueError: the question is empty, or the picture does not decode.
        FileNotFoundError: there is no such picture.
    """
    from callbacks.measures.answers import SHORT_ANSWER, answer
    from datamodules.encode import encode_question
    from datamodules.images import read_image
    from pipelines.run.trained import context_of, load_trained, trained_config

    if not arguments.question.strip():
        raise ValueError('the question is empty; ask something, for example "What is in the image?"')
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {arguments.max_new_tokens} must be at least 1")
    read_image(arguments.image)
    config = trained_config(arguments.run, overrides)
    _say_if_untrained(config, "mmu", arguments.run)
    context = context_of(load_trained(arguments.run, overrides, draws=False))
    question = arguments.question.strip() + (SHORT_ANSWER if arguments.short else "")
    prompt = encode_question(context.tokenizer, question, context.template)
    tokens = arguments.max_new_tokens or max(1, min(ANSWER_LENGTH, context.model.answer_room(len(prompt))))
    [(text, _, truncated)] = answer(context, [arguments.image], [prompt], tokens)
    say(text)
    if truncated:
        warn(f"the answer was cut after {tokens} tokens; raise --max-new-tokens, if the model has room")


def _sampling(arguments: argparse.Namespace, config: "RunConfig") -> "SamplingConfig":
    """The run's sampling settings, overridden by the command line."""
    from callbacks.measures.pictures import SamplingConfig
    from callbacks.measures.samples import SamplesConfig

    base = config.evaluation.section(SamplesConfig) or SamplingConfig()
    given = {field.name: getattr(arguments, field.name) for field in fields(SamplingConfig)}
    sampling = SamplingConfig(
        **{name: getattr(base, name) if value is None else value for name, value in given.items()}
    )
    if problems := sampling.problems():
        raise ValueError("; ".join(problems))
    return sampling


def _out(arguments: argparse.Namespace, folder: Path) -> Path:
    """Where the picture goes: ``--out``, or a name made from caption and seed in ``folder``/samples."""
    out: Path | None = arguments.out
    if out is None:
        slug = re.sub(r"[^a-z0-9]+", "-", arguments.caption.lower()).strip("-")[:60] or "picture"
        out = folder / SAMPLES / f"{slug}-seed{arguments.seed}.png"
    elif not out.parent.is_dir():
        raise FileNotFoundError(f"folder {out.parent} does not exist; create it first or name another --out")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png: pictures are stored without loss")
    if out.exists() and not arguments.force:
        raise FileExistsError(f"{out} exists and is not overwritten; name another --out, or add --force")
    return out


def _say_if_untrained(config: "RunConfig", task: str, run: Path) -> None:
    from modules.stages import STAGES

    if task not in STAGES[config.stage.name].tasks:
        warn(f"{run} is of stage {config.stage.name}, which does not train {task}; its output may be useless")


def _parse() -> tuple[argparse.Namespace, list[str]]:
    from pipelines.run.console import split_overrides

    parser = argparse.ArgumentParser(
        prog="python -m pipelines.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run folder, a checkpoint, an exported folder, or a YAML file"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    draws = verbs.add_parser("text2image", help="draw a caption")
    draws.add_argument("caption", metavar="CAPTION")
    draws.add_argument("--out", type=Path, metavar="FILE.png", help="default: a name in RUN/samples")
    draws.add_argument("--force", action="store_true", help="overwrite the file")
    draws.add_argument("--seed", type=int, default=0, help="each seed gives another picture (default: 0)")
    draws.add_argument("--temperature", type=float, help="default: the run's evaluation.samples, else 1")
    draws.add_argument("--top-k", type=int, help="the k most likely tokens; 0: all; default as for --temperature")
    draws.add_argument("--top-p", type=float, help="the most likely tokens of this share; default as for --temperature")
    draws.add_argument("--guidance", type=float, help="above 1: closer to the caption; default as for --temperature")
    asks = verbs.add_parser("describe", help="answer a question about a picture")
    asks.add_argument("image", type=Path, metavar="IMAGE")
    asks.add_argument("question", metavar="QUESTION")
    asks.add_argument("--short", action="store_true", help="ask for a single word or phrase, as the benchmarks do")
    asks.add_argument("--max-new-tokens", type=int, help=f"default: {ANSWER_LENGTH}, or less if the model has no room")
    arguments, rest = parser.parse_known_args()
    return arguments, split_overrides(parser, rest)


if __name__ == "__main__":
    run_verb(main)
