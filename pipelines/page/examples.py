"""What a run was trained on, and some of it to try: captions, and questions about pictures."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from callbacks.measures.answers import SHORT_ANSWER
from callbacks.measures.samples import CAPTIONS, read_captions
from datamodules.inspection.peek import Peek, peek, picture_of
from datamodules.shards.reader import ShardSet
from datamodules.stored import captions_of, turns_of
from modules.files import step_folders
from modules.omnimamba.config import Task
from modules.run_files import SAMPLES
from modules.stages import STAGES
from pipelines.run.config import RunConfig
from pipelines.run.paths import from_here

log = logging.getLogger(__name__)
MOST_CAPTIONS, MOST_QUESTIONS = 6, 4
"""How many examples the page shows."""
WORDS = {"mmu": "answering questions", "t2i": "drawing captions"}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A run's training data in a few words, and some of it."""

    remarks: list[str]
    captions: list[str] = field(default_factory=list)
    questions: list[tuple[Path, str]] = field(default_factory=list)
    """Pictures, as files, with a question about each."""


def examples_of(config: RunConfig, folder: Path) -> Examples:
    """Examples of ``config``'s training data; the pictures are written to ``folder``.

    Data that is not on this machine is left out, and said so. Captions then come from the run's own samples.
    """
    found = Examples(remarks=[])
    for task in STAGES[config.stage.name].tasks:
        manifest = config.data.mmu if task == "mmu" else config.data.t2i
        try:
            _add(found, task, manifest, folder)
        except (OSError, ValueError) as error:
            log.warning("no examples of %s: %s", WORDS[task], error)
            away = "://" in manifest or isinstance(error, FileNotFoundError)
            why = "not on this machine" if away else "which cannot be read here"
            found.remarks.append(f"{WORDS[task].capitalize()}: learnt from {from_here(manifest)}, {why}.")
    if not found.captions:
        found.captions.extend(_drawn_captions(config.folder)[:MOST_CAPTIONS])
    return found


def _add(found: Examples, task: Task, manifest: str, folder: Path) -> None:
    if "://" in manifest:
        raise ValueError(f"{manifest} is not on this machine")
    shards = ShardSet.open(manifest)
    samples = list(_spread(shards, MOST_CAPTIONS if task == "t2i" else MOST_QUESTIONS))
    if task == "t2i":
        found.captions.extend([captions_of(sample.content)[0] for sample in samples])
    else:
        found.questions.extend(_questions(samples, folder))
    found.remarks.append(f"{WORDS[task].capitalize()}: learnt from {len(shards):,} samples of {from_here(manifest)}.")


def _questions(samples: Sequence[Peek], folder: Path) -> list[tuple[Path, str]]:
    asked = []
    for sample in samples:
        if (picture := picture_of(sample)) is not None:
            kind, payload = picture
            path = folder / f"{sample.index}.{kind}"
            path.write_bytes(payload)
            asked.append((path, turns_of(sample.content)[0][0].removesuffix(SHORT_ANSWER)))
    return asked


def _spread(shards: ShardSet, most: int) -> Iterator[Peek]:
    """At most ``most`` samples, spread evenly over all of them."""
    for number in range(min(most, len(shards))):
        yield peek(shards, str(number * len(shards) // most))


def _drawn_captions(run: Path) -> list[str]:
    """The captions that the run's last evaluation drew."""
    files = [file for folder in step_folders(run / SAMPLES) if (file := folder / CAPTIONS).is_file()]
    return list(read_captions(files[-1]).values()) if files else []
