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
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modules.run_files import SAMPLES
from pipelines.run.console import run_verb, say, warn

if TYPE_CHECKING:
    from pipelines.run.config import RunConfig


SAMPLING = ("seed", "temperature", "top_k", "top_p", "guidance")
"""Options of text2image that are sampling settings of the run."""


def main() -> None:
    """Parse the command line and generate."""
    arguments, overrides = _parse()
    # imported here to keep --help fast; it tells a wrong word before torch is loaded
    from pipelines.run.words import check_trained

    check_trained(arguments.run, overrides)
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
    from pipelines.run.asked import require_drawable, sampling_of
    from pipelines.run.compose import build_tokenizer
    from pipelines.run.trained import load_trained, trained_config

    config = trained_config(arguments.run, overrides)
    # all of it is checked before the weights are loaded, which may take minutes
    settings = {name: getattr(arguments, name) for name in SAMPLING}
    sampling_of(config, **settings)
    out = _out(arguments, config.folder)
    require_drawable(config, build_tokenizer(config.model), arguments.caption)
    _say_if_untrained(config, "t2i", arguments.run)
    [picture] = load_trained(arguments.run, overrides).draw(arguments.caption, **settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    say(str(out))


def describe(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print the answer to ``arguments.question`` about a picture.

    Raises:
        ValueError: the question is empty, or the picture does not decode.
        FileNotFoundError: there is no such picture.
    """
    from datamodules.images import read_image
    from pipelines.run.asked import require_question
    from pipelines.run.trained import load_trained, trained_config

    require_question(arguments.question, arguments.max_new_tokens)
    read_image(arguments.image)
    _say_if_untrained(trained_config(arguments.run, overrides), "mmu", arguments.run)
    run = load_trained(arguments.run, overrides, draws=False)
    say(run.answer(arguments.image, arguments.question, short=arguments.short, max_new_tokens=arguments.max_new_tokens))


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
    asks.add_argument("--max-new-tokens", type=int, help="default: 64, or less if the model has no room")
    arguments, rest = parser.parse_known_args()
    _refuse_unquoted(arguments, rest)
    return arguments, split_overrides(parser, rest)


def _refuse_unquoted(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Refuse words that belong to a caption or question without quotes.

    Raises:
        ValueError: there are some; the message has the command with quotes.
    """
    loose = [word for word in rest if not word.startswith("-") and "=" not in word]
    if not loose or any(word.startswith("-") for word in rest):  # what an unknown option takes is not known
        return
    draws = arguments.verb == "text2image"
    text = " ".join([arguments.caption if draws else arguments.question, *loose])
    before = "text2image" if draws else f"describe {shlex.quote(str(arguments.image))}"
    what = "caption" if draws else "question"
    raise ValueError(
        f"the {what} is several words, so it needs quotes: {shlex.quote(str(arguments.run))} {before} {_quoted(text)}"
    )


def _quoted(text: str) -> str:
    """``text`` in the quotes that one would choose, where these are enough."""
    return shlex.quote(text) if re.search(r"[\"$`\\!]", text) else f'"{text}"'


if __name__ == "__main__":
    run_verb(main)
