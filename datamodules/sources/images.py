"""A folder of images with captions to T2I shards."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.shards.builder import Progress, build_shards
from datamodules.sources.common import need_folder, read_json_lines
from datamodules.sources.t2i import (
    CaptionedFile,
    FileReader,
    T2IConfig,
    T2IMaker,
    captioned_file,
    describe_vq,
    processes_for_pictures,
)

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_CAPTION_KEYS = {"caption", "captions"}


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(T2IConfig):
    """Where the images and captions are and where the shards go."""

    images: str
    """Folder of the images."""
    captions: str = ""
    """JSONL file with lines {"file": "a/b.jpg", "caption": "..."} or {"file": ..., "captions": [...]}. If left out,
    the captions of a/b.jpg are the lines of a/b.txt."""
    name: str = "images"


def build_images(config: ImagesConfig, progress: Progress | None = None) -> Path:
    """Build the shards and return their manifest.

    Raises:
        FileNotFoundError: a file or folder of ``config`` is missing.
        ValueError: a line of the captions file has another layout, or nothing can be used; see also `build_shards`.
        FileExistsError: ``config.out`` already holds another data set.
    """
    folder = need_folder(Path(config.images), "image folder")
    found = _listed(Path(config.captions)) if config.captions else _beside(folder)
    rows = [
        captioned_file(f"{config.name}-{number:08d}", file, captions, about={"image": file})
        for number, (file, captions) in enumerate(sorted(found.items()))
    ]
    vq = describe_vq(config.vq)
    meta = {
        "source": "images",
        "licence": config.licence,
        "captions": {"file": Path(config.captions).name or "beside the images", "sha256": _digest(rows)},
        "vq": vq,
        "batch": config.batch,
    }
    return build_shards(
        Path(config.out),
        config.name,
        rows,
        T2IMaker(read=FileReader(folder), vq=config.vq, vq_fingerprint=vq["fingerprint"], batch=config.batch),
        per_shard=config.per_shard,
        meta=meta,
        processes=processes_for_pictures(config),
        progress=progress,
    )


def _listed(path: Path) -> dict[str, list[Any]]:
    """Captions by file, collected from all lines that name it."""
    found: dict[str, list[Any]] = {}
    for entry in read_json_lines(path, "captions file"):
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("file"), str)
            or len(entry.keys() & _CAPTION_KEYS) != 1
        ):
            raise ValueError(
                f'captions file {path}: an entry must hold "file" and one of "caption" and "captions", not '
                f"{str(entry)[:100]}"
            )
        captions = entry.get("captions", entry.get("caption"))
        found.setdefault(entry["file"], []).extend(captions if isinstance(captions, list) else [captions])
    return found


def _beside(folder: Path) -> dict[str, list[Any]]:
    """Captions by file, from the text file next to each; none if there is no text file."""
    found: dict[str, list[Any]] = {}
    for path in folder.rglob("*"):
        if path.suffix.lower() in _SUFFIXES:
            text = path.with_suffix(".txt")
            # a byte that is not UTF-8 becomes half a surrogate pair, which is rejected later with its reason
            lines = text.read_text(encoding="utf-8-sig", errors="surrogateescape") if text.is_file() else ""
            found[path.relative_to(folder).as_posix()] = list(lines.split("\n"))
    return found


def _digest(rows: Iterable[CaptionedFile]) -> str:
    """Hex SHA-256 of the captions and the names of their files."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(asdict(row)).encode())
    return digest.hexdigest()
