"""LLaVA-style conversations to MMU shards: LLaVA-1.5, ShareGPT4V, LVIS-Instruct4V, their mixes, and LRV-Instruct."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.shards.builder import Progress
from datamodules.sources.common import (
    BadEntryError,
    SourceConfig,
    clean_text,
    need_folder,
    processes_of,
    read_file,
)
from datamodules.sources.mmu import Conversation, MMUMaker, checked_turns, question_and_answer
from datamodules.sources.split import build_parts
from modules.files import sha256
from modules.reading import read_entries

_LRV_KEYS = {"image_id", "question", "answer"}


@dataclass(frozen=True, kw_only=True)
class LlavaConfig(SourceConfig):
    """Where the official files are and where the shards go."""

    annotations: str
    """Conversations, such as llava_v1_5_mix665k.json: a JSON list, or one entry per line."""
    images: str
    """Folder that the image paths in the annotations are relative to."""
    name: str = "llava"
    """Prefix of the names of shards and keys, and the ``source`` of each sample."""
    per_shard: int = 1000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Row of the plan: an unchanged entry of the file."""

    key: str
    row: int
    content: Any


def build_llava(config: LlavaConfig, progress: Progress | None = None) -> Path:
    """Build the shards and return their manifest.

    Raises:
        FileNotFoundError: a file or folder of ``config`` is missing.
        ValueError: the annotations file cannot be read, or nothing in it can be used; see also `build_parts`.
        FileExistsError: ``config.out`` already holds another data set.
    """
    annotations = Path(config.annotations)
    content: list[Any] = read_entries(annotations, object, "conversations file")
    folder = need_folder(Path(config.images), "image folder")
    return build_parts(
        config,
        # keys by row: ids repeat in the official mixes, because an image may have several conversations
        [Entry(key=f"{config.name}-{row:08d}", row=row, content=entry) for row, entry in enumerate(content)],
        _image_of,
        MMUMaker(read=EntryReader(folder), source=config.name),
        meta={
            "source": "llava",
            "licence": config.licence,
            "annotations": {"file": annotations.name, "sha256": sha256(annotations)},
        },
        processes=processes_of(config),
        progress=progress,
    )


@dataclass(frozen=True)
class EntryReader:
    """Reads the conversation and picture of `Entry` rows."""

    folder: Path

    def __call__(self, row: Entry) -> Conversation:
        """The conversation and picture of ``row``.

        Raises:
            BadEntryError: the entry has a fault, or its picture cannot be read.
        """
        entry = row.content
        if not isinstance(entry, dict):
            raise BadEntryError(f"entry is not an object: {type(entry).__name__}")
        if entry.keys() >= _LRV_KEYS and "conversations" not in entry:
            file, turns = _lrv_file(entry), question_and_answer(entry["question"], entry["answer"])
        elif not entry.get("image"):
            raise BadEntryError("no image")
        else:
            file, turns = clean_text(entry["image"], "image"), checked_turns(entry.get("conversations"))
        content = read_file(self.folder, file)
        return Conversation(id=_id(entry.get("id"), row.row), turns=turns, file=file, content=content)


def _image_of(row: Entry) -> str:
    """The name of the entry's picture; an entry without one is rejected later."""
    entry = row.content
    image = entry.get("image", entry.get("image_id")) if isinstance(entry, dict) else None
    if isinstance(entry, dict) and "image_id" in entry and "image" not in entry and type(image) in (int, str):
        return _lrv_file(entry)
    return image if isinstance(image, str) else row.key


def _id(value: Any, row: int) -> str:
    """The entry's own id, or the number of its row."""
    return str(row if value is None else value) if value is None or type(value) is int else clean_text(value, "id")


def _lrv_file(entry: dict[str, Any]) -> str:
    image_id = entry["image_id"]
    # LRV-Instruct names pictures of Visual Genome; some releases include the extension
    name = clean_text(str(image_id) if type(image_id) is int else image_id, "image_id")
    return name if name.endswith(".jpg") else f"{name}.jpg"
