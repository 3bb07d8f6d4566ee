"""A folder of images with captions to T2I shards."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from datamodules.shards.builder import Progress
from datamodules.sources.common import need_folder
from datamodules.sources.split import build_parts
from datamodules.sources.t2i import (
    CaptionedFile,
    FileReader,
    T2IConfig,
    T2IMaker,
    captioned_file,
    describe_vq,
    image_of,
    processes_for_pictures,
)
from modules.folders import files_below
from modules.reading import read_entries, refuse_lfs_pointer, shown

_SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"))


class _Line(TypedDict):
    file: str
    caption: NotRequired[Any]
    captions: NotRequired[Any]
    """Texts; if they are not, the file is rejected."""


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
        ValueError: a line of the captions file has another layout, or nothing can be used; see also `build_parts`.
        FileExistsError: ``config.out`` already holds another data set.
    """
    folder = need_folder(Path(config.images), "image folder")
    left_out: Counter[str] = Counter()
    found = _listed(Path(config.captions)) if config.captions else _beside(folder, left_out)
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
    return build_parts(
        config,
        rows,
        image_of,
        T2IMaker(read=FileReader(folder), vq=config.vq, vq_fingerprint=vq["fingerprint"], batch=config.batch),
        meta=meta,
        counts=left_out,
        processes=processes_for_pictures(config),
        progress=progress,
    )


def _listed(path: Path) -> dict[str, list[Any]]:
    """Captions by file, collected from all lines that name it."""
    found: dict[str, list[Any]] = {}
    for entry in read_entries(path, _Line, "captions file"):
        if ("caption" in entry) == ("captions" in entry):
            raise ValueError(
                f'captions file {path}: an entry must hold "file" and one of "caption" and "captions", not '
                f"{shown(entry)}"
            )
        captions = entry.get("captions", entry.get("caption"))
        found.setdefault(entry["file"], []).extend(captions if isinstance(captions, list) else [captions])
    return found


def _beside(folder: Path, left_out: Counter[str]) -> dict[str, list[Any]]:
    """Captions by file, from the text file next to each; none if there is no text file."""
    found: dict[str, list[Any]] = {}
    for path in files_below(folder, left_out):
        if path.suffix.lower() in _SUFFIXES:
            found[path.relative_to(folder).as_posix()] = _lines(path.with_suffix(".txt"))
    return found


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    content = path.read_bytes()
    refuse_lfs_pointer(content, f"captions {path}")
    # a byte that is not UTF-8 becomes half a surrogate pair, which is rejected later with its reason
    return content.decode("utf-8-sig", errors="surrogateescape").replace("\r\n", "\n").split("\n")


def _digest(rows: Iterable[CaptionedFile]) -> str:
    """Hex SHA-256 of the captions and the names of their files."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(asdict(row)).encode())
    return digest.hexdigest()
