"""LLaVA-style conversations to MMU shards: the conversation and the image's original bytes per sample."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.shards import Sample
from datamodules.sources.common import (
    BadImageError,
    Rejected,
    build_shards,
    checked_image,
    need_folder,
    read_json,
)
from modules.files import sha256

IMAGE_MARK = "<image>"


@dataclass(frozen=True, kw_only=True)
class LlavaConfig:
    """Where the official files lie and where the shards go."""

    annotations: str
    """LLaVA conversations JSON, such as llava_v1_5_mix665k.json."""
    images: str
    """Folder that the image paths in it start from."""
    out: str
    """Folder for the shards."""
    name: str = "llava"
    """Starts the names of shards and keys, and is each sample's ``source``."""
    per_shard: int = 1000

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        return [] if self.per_shard >= 1 else [f"per_shard={self.per_shard} must be at least 1"]


def build_llava(config: LlavaConfig) -> Path:
    """Build the shards and return their manifest.

    JPEG files are taken over byte for byte; other formats become JPEG of quality 95, which ``meta.counts`` records.

    Raises:
        FileNotFoundError: a file or folder of ``config`` is missing.
        ValueError: the annotations file is no list, or nothing in it can be used.
        FileExistsError: ``config.out`` already holds a data set.
    """
    annotations = Path(config.annotations)
    content = read_json(annotations, "conversations file")
    if not isinstance(content, list):
        raise ValueError(f"conversations file {annotations} must hold a list of entries, not {type(content).__name__}")
    folder = need_folder(Path(config.images), "image folder")
    counts: Counter[str] = Counter()
    meta = {"source": "llava", "annotations": {"file": annotations.name, "sha256": sha256(annotations)}}
    return build_shards(
        Path(config.out),
        config.name,
        _entries(config, content, folder, counts),
        per_shard=config.per_shard,
        meta=meta,
        counts=counts,
    )


def conversation_fault(entry: Any) -> str | None:
    """Why an entry cannot be used, its image file aside; None when it can."""
    if not isinstance(entry, dict):
        return f"entry is {type(entry).__name__}, not an object"
    if not isinstance(entry.get("image"), str) or not entry["image"]:
        return "no image"
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        return "conversations must be a non-empty list of human and gpt turns in pairs"
    for number, turn in enumerate(turns):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            return f"turn {number} is not from {speaker!r}"
        if not isinstance(turn.get("value"), str):
            return f"turn {number} has no text"
        marks = turn["value"].count(IMAGE_MARK)
        if marks != (number == 0):
            return f"turn {number} holds {IMAGE_MARK} {marks} times; turn 0 needs it once, the others not at all"
        if number and not turn["value"].strip():
            return f"turn {number} is empty"
    return None


def _entries(
    config: LlavaConfig, content: list[Any], folder: Path, counts: Counter[str]
) -> Iterator[Sample | Rejected]:
    for row, entry in enumerate(content):
        # by row: ids repeat in the official mixes, one image having several conversations
        key = f"{config.name}-{row:08d}"
        if fault := conversation_fault(entry):
            yield Rejected(key=key, reason=fault)
            continue
        try:
            picture = _jpeg(folder / entry["image"], counts)
        except BadImageError as error:
            yield Rejected(key=key, reason=str(error))
            continue
        turns = [{"from": turn["from"], "value": turn["value"]} for turn in entry["conversations"]]
        sample = {
            "id": str(entry.get("id", row)),
            "conversations": turns,
            "image": entry["image"],
            "source": config.name,
        }
        yield key, {"json": json.dumps(sample).encode(), "jpg": picture}


def _jpeg(path: Path, counts: Counter[str]) -> bytes:
    content, image = checked_image(path)
    # MPO is a JPEG with further pictures behind it
    if image.format in ("JPEG", "MPO"):
        return content
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95)
    counts[f"converted_from_{str(image.format).lower()}"] += 1
    return buffer.getvalue()
