"""Turn official files, or embedded scenes, into shards for training, and inspect them."""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.scenes.prepare import PrepareScenesConfig, prepare_scenes
from datamodules.shards.builder import REJECTED, Progress, RejectedEntry
from datamodules.shards.manifest import Manifest
from datamodules.sources.coco import CocoConfig, build_coco
from datamodules.sources.hf import HfConfig, build_hf
from datamodules.sources.images import ImagesConfig, build_images
from datamodules.sources.llava import LlavaConfig, build_llava
from datamodules.sources.pretokenized import PretokenizedConfig, build_pretokenized
from datamodules.sources.split import manifests
from modules.reading import checked, read_json_lines
from pipelines.prepare.tools import add_tools
from pipelines.run.console import run_verb, say
from pipelines.run.overrides import parse_overrides

_REASONS = 5
"""Number of reject kinds in the report, most frequent first."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of input: its help text, settings, work and example."""

    about: str
    config: type[Any]
    work: Callable[[Any], None]
    example: str


def _scenes(config: PrepareScenesConfig) -> None:
    paths = prepare_scenes(config)
    say(f"{paths.folder} is ready")


def _shards(build: Callable[[Any, Progress], Path], config: Any) -> None:
    from pipelines.run.counting import CountProgress

    parts = manifests(config)
    built_before = all(manifest.exists() for manifest in parts)
    with CountProgress(config.name) as progress:
        build(config, progress.show)
    if built_before:
        say(
            f"{config.out} was built before from the same texts and settings; nothing was done. Delete it to rebuild it"
        )
    for manifest in parts:
        _report(manifest)


SOURCES = {
    "scenes": Source(
        about="draw the embedded data, train tokenizers on them and build their shards",
        config=PrepareScenesConfig,
        work=_scenes,
        example="folder=data/scenes images=3000 seed=0",
    ),
    "coco": Source(
        about="COCO captions and images to T2I shards",
        config=CocoConfig,
        work=partial(_shards, build_coco),
        example="captions=annotations/captions_train2014.json images=train2014 vq=vq.safetensors out=data/t2i",
    ),
    "images": Source(
        about="a folder of images with captions, in a JSONL file or in .txt files next to them, to T2I shards",
        config=ImagesConfig,
        work=partial(_shards, build_images),
        example="images=pictures captions=captions.jsonl vq=vq.safetensors out=data/t2i name=mine",
    ),
    "llava": Source(
        about="LLaVA-style conversations, or LRV-Instruct's questions, and their images to MMU shards",
        config=LlavaConfig,
        work=partial(_shards, build_llava),
        example="annotations=llava_v1_5_mix665k.json images=. out=data/mmu_llava name=llava",
    ),
    "pretokenized": Source(
        about="captions with existing VQ codes, one JSON object per line, to T2I shards",
        config=PretokenizedConfig,
        work=partial(_shards, build_pretokenized),
        example="annotations=t2i.jsonl vq=vq_ds16_t2i.pt out=data/t2i name=released",
    ),
    "hf": Source(
        about="a Hugging Face data set to T2I shards (captions) or MMU shards (conversations or questions)",
        config=HfConfig,
        work=partial(_shards, build_hf),
        example="dataset=data/vqa split=train question_column=question answer_column=answer out=data/mmu_vqa name=vqa",
    ),
}


def main() -> None:
    """Parse the command line and prepare."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.prepare",
        description=__doc__,
        epilog="Examples:\n\n" + "\n\n".join(_keys(name, source) for name, source in SOURCES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="source or tool", required=True)
    for name, source in SOURCES.items():
        command = commands.add_parser(
            name,
            help=source.about,
            description=source.about,
            epilog=_keys(name, source),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("overrides", nargs="*", metavar="key=value", help="settings, listed below")
        command.set_defaults(run=partial(_run, source))
    add_tools(commands)
    arguments = parser.parse_args()
    arguments.run(arguments)


def _run(source: Source, arguments: argparse.Namespace) -> None:
    try:
        source.work(parse_overrides(source.config, arguments.overrides))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("run the same command again to continue; finished shards are kept") from stop


def _keys(name: str, source: Source) -> str:
    """Settings and an example of a source, for --help."""
    lines = [f"{name}:  python -m pipelines.prepare {name} {source.example}"]
    for each in fields(source.config):
        default = "required" if each.default is MISSING else f"default {each.default!r}"
        lines.append(f"  {each.name:<20} {default}")
    return "\n".join(lines)


def _report(manifest: Path) -> None:
    """Say what was built, and why some entries were rejected."""
    read = Manifest.read(manifest)
    counted = checked(read.meta.get("counts"), dict[str, int], f"manifest {manifest}, counts")
    counts = ", ".join(f"{key} {value}" for key, value in sorted(counted.items()))
    say(f"{manifest}: {sum(entry.n for entry in read.entries)} samples in {len(read.entries)} shards ({counts})")
    rejects = read_json_lines(manifest.parent / REJECTED, RejectedEntry, "list of rejected entries")
    # the text before the first colon is the kind of reason
    kinds = Counter(str(each["reason"]).split(":")[0] for _, each in rejects).most_common()
    for kind, count in kinds[:_REASONS]:
        say(f"  rejected {count}: {kind}")
    if kinds:
        further = f" (and {len(kinds) - _REASONS} further kinds)" if len(kinds) > _REASONS else ""
        say(f"  reasons for each{further}: {manifest.parent / REJECTED}")


if __name__ == "__main__":
    run_verb(main)
