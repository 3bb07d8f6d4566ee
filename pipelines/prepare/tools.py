"""Tools to inspect prepared data: verify it, survey it, and look at a sample."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.run.console import say
from pipelines.run.ending import FAILED
from pipelines.run.output import show_table

if TYPE_CHECKING:
    from datamodules.inspection.peek import Peek, Token
    from datamodules.inspection.survey import Summary, Survey


def add_tools(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``verify``, ``stats`` and ``peek``; each sets ``run``, which is called with the arguments."""
    verify = _command(commands, "verify", _verify, "find all faults of a data set; exits with code 1 if there are any")
    verify.add_argument("--sha256", action="store_true", help="hash every shard, and name damaged keys")
    verify.add_argument("--decode", action="store_true", help="check and decode every payload")
    _processes(verify)
    stats = _command(commands, "stats", _stats, "survey what a data set holds")
    stats.add_argument("--tokenizer", default="", help="tokenizer.json to measure the texts with")
    stats.add_argument("--length", type=int, help="fixed length of every text in ids (default: 449; captions: 68)")
    stats.add_argument("--image-positions", type=int, default=729, help="positions of an MMU image (default: 729)")
    stats.add_argument(
        "--evaluation",
        nargs="+",
        default=[],
        type=Path,
        metavar="PLACE",
        help="question files or folders of pictures, to find them in the data set",
    )
    stats.add_argument("--json", action="store_true", help="print JSON instead of tables")
    _processes(stats)
    peek = _command(commands, "peek", _peek, "show one sample as the model sees it")
    peek.add_argument("key", metavar="KEY", help="its key, or its number, counted from 0")
    peek.add_argument("--tokenizer", default="", help="tokenizer.json, to show tokens and labels")
    peek.add_argument("--length", type=int, help="length of the text in ids (default: 449; captions: 68)")
    peek.add_argument("--caption", type=int, default=0, help="which caption to tokenize (default: 0)")
    peek.add_argument("--vq", default="", help="image tokenizer file, to draw the codes of a T2I sample")
    peek.add_argument("--out", type=Path, help="file for the picture (default: KEY.jpg, or KEY.png from codes)")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    work: Callable[[argparse.Namespace], None],
    what: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what)
    parser.add_argument(
        "manifest", metavar="MANIFEST", help="manifest.json of the data set, a path or a URL; or its folder"
    )
    parser.add_argument("--cache", type=Path, help="folder to copy the shards to")
    parser.set_defaults(run=work)
    return parser


def _processes(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--processes", type=int, default=cores, help=f"number of worker processes (default: {cores}, all cores)"
    )


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal; nothing if standard error goes to a file."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _verify(arguments: argparse.Namespace) -> None:
    from datamodules.inspection.verify import shards_of, verify

    with _bar("shards") as progress:
        found = verify(
            arguments.manifest,
            arguments.cache,
            sha256=arguments.sha256,
            decode=arguments.decode,
            processes=arguments.processes,
            progress=progress,
        )
    for fault in found.faults:
        say(f"{fault.shard}{f', key {fault.key}' if fault.key else ''}: {fault.what}")
    checked = ["sizes", "indexes", *(["sha256"] if arguments.sha256 else []), *(["decode"] if arguments.decode else [])]
    say(
        f"{arguments.manifest}: {found.shards} shards, {found.samples} samples, {found.bytes} bytes; "
        f"checked: {', '.join(checked)}; {len(found.faults)} faults"
    )
    if found.faults:
        say(f"copy or build again: {', '.join(shards_of(found.faults)) or 'the data set'}")
        sys.exit(FAILED)


def _stats(arguments: argparse.Namespace) -> None:
    from datamodules.inspection.evaluation_images import read_evaluation
    from datamodules.inspection.findings import SurveyConfig
    from datamodules.inspection.survey import survey

    config = SurveyConfig(
        tokenizer=arguments.tokenizer, length=arguments.length, image_positions=arguments.image_positions
    )
    evaluation = read_evaluation(arguments.evaluation) if arguments.evaluation else None
    with _bar("shards") as progress:
        found = survey(
            arguments.manifest,
            arguments.cache,
            config,
            evaluation,
            processes=arguments.processes,
            progress=progress,
        )
    if arguments.json:
        say(json.dumps(asdict(found), indent=2))
    else:
        _show_survey(found)


def _show_survey(found: "Survey") -> None:
    from rich.table import Table

    table = Table("", "mean", "median", "p90", "max", "total")
    rows: dict[str, Summary | None] = {
        **{f"bytes of .{kind}": summary for kind, summary in found.payloads.items()},
        "image width": found.width,
        "image height": found.height,
        "captions per image": found.captions,
        "questions per conversation": found.turns,
        "ids per text": found.text_ids,
    }
    for name, summary in rows.items():
        if summary is not None:
            table.add_row(name, *(f"{value:,.1f}".removesuffix(".0") for value in asdict(summary).values()))
    say(f"{found.samples:,} samples in {found.shards:,} shards of {found.bytes:,} bytes")
    show_table(table)
    lines = [
        f"repeated pictures: {found.repeated_contents} by content, {found.repeated_names} by name",
        f"texts that spell a special token: {found.spelled}" + (" (read as plain text)" if found.spelled else ""),
        f"unreadable: {found.unreadable}" + (" (verify --decode names them)" if found.unreadable else ""),
    ]
    if (padding := found.padding) is not None:
        lines += [
            f"every text at {padding.length} ids: {padding.cut} cut, {padding.no_room} without room for an answer",
            f"  padding is {padding.text_waste:.1%} of the text and {padding.sequence_waste:.1%} of all positions "
            f"({padding.positions_fixed:,.0f} per sequence; {padding.positions_packed:,.1f} without padding)",
        ]
    if (overlap := found.overlap) is not None:
        by_content = "not compared" if overlap.by_content is None else overlap.by_content
        lines.append(f"pictures also used in evaluation: {overlap.by_name} by name, {by_content} by content")
        lines += [f"  {key}" for key in overlap.keys]
    for line in lines:
        print(line)  # not said: `special token: 0` looks like a secret


def _peek(arguments: argparse.Namespace) -> None:
    from datamodules.encode import PromptTemplate
    from datamodules.inspection.findings import MMU_LENGTH, T2I_LENGTH
    from datamodules.inspection.peek import peek, tokens
    from datamodules.shards.reader import ShardSet

    sample = peek(ShardSet.open(arguments.manifest, arguments.cache), arguments.key)
    sizes = ", ".join(f".{kind} {len(payload)} bytes" for kind, payload in sample.payloads.items())
    say(f"{sample.key}: sample {sample.index}, in shard {sample.shard} ({sizes})")
    say(json.dumps(sample.content, indent=2, ensure_ascii=False))
    _write_picture(sample, arguments)
    if arguments.tokenizer:
        from modules.omnimamba.tokenizer import TextTokenizer

        _show_tokens(
            tokens(
                sample.content,
                TextTokenizer(arguments.tokenizer),
                PromptTemplate(),
                mmu_length=arguments.length or MMU_LENGTH,
                caption_length=arguments.length or T2I_LENGTH,
                caption=arguments.caption,
            )
        )


def _write_picture(sample: "Peek", arguments: argparse.Namespace) -> None:
    from datamodules.images import decode, to_image
    from datamodules.inspection.peek import codes_of, picture_of

    stored, codes = picture_of(sample), codes_of(sample)
    if stored is not None:
        kind, payload = stored
        out = arguments.out or Path(f"{sample.key}.{kind}")
        if out.suffix.lower() == f".{kind}":
            out.write_bytes(payload)
        else:
            decode(payload).save(out)
    elif codes is not None and arguments.vq:
        import torch

        from modules.omnimamba.vq import load_image_tokenizer

        out = arguments.out or Path(f"{sample.key}.png")
        to_image(load_image_tokenizer(arguments.vq).decode(torch.from_numpy(codes)[None])[0]).save(out)
    else:
        say("no picture is stored; name an image tokenizer with --vq to draw its codes")
        return
    say(f"picture: {out}")


def _show_tokens(sequence: "list[Token]") -> None:
    """Print one line per position; a run of padding is shortened to its first position."""
    from modules.omnimamba.tokenizer import PAD

    say(f"{'position':>8}  {'id':>6}  {'label':>6}  token")
    run = 0
    for token in [*sequence, None]:
        if token is not None and token.text == PAD and run:
            run += 1
            continue
        if run > 1:
            say(f"{'...':>8}  {run - 1} more {PAD}")
        if token is None:
            break
        run = int(token.text == PAD)
        label: Any = "-" if token.label is None else token.label
        say(f"{token.position:>8}  {token.id:>6}  {label:>6}  {token.text}")
