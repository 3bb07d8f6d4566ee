"""What the readers of official files share: images checked to the last pixel, rejects written down, shards built."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.shard_writer import write_shards
from datamodules.shards import Sample

REJECTED = "rejected.jsonl"


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """An entry that does not become a sample, and why."""

    key: str
    reason: str


class BadImageError(ValueError):
    """An image file is missing or does not decode."""


def checked_image(path: Path) -> tuple[bytes, Image.Image]:
    """Bytes of an image file and the image, decoded in full.

    Raises:
        BadImageError: the file is missing, empty, truncated or no image.
    """
    if not path.is_file():
        raise BadImageError(f"image {path.name} does not exist")
    content = path.read_bytes()
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(f"image {path.name} does not decode: {error}") from error
    return content, image


def read_json(path: Path, what: str) -> Any:
    """Content of a JSON file; ``what`` names it in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} {path} is not JSON: {error}") from error


def need_folder(path: Path, what: str) -> Path:
    """``path``, if it is a folder.

    Raises:
        FileNotFoundError: it is not.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{what} {path} is not a folder")
    return path


def build_shards(
    folder: Path,
    name: str,
    entries: Iterable[Sample | Rejected],
    *,
    per_shard: int,
    meta: Mapping[str, Any],
    counts: Counter[str],
) -> Path:
    """Write the samples among ``entries`` to shards and the rejected ones to ``rejected.jsonl``; return the manifest.

    ``counts`` is filled by whoever yields the entries, and by the samples and rejects counted here; the manifest's
    ``meta`` holds it as it is at the end.

    Raises:
        ValueError: no entry became a sample; the message gives the first reasons.
        FileExistsError: the folder already holds a data set.
    """
    rejected: list[Rejected] = []
    found = {**meta, "counts": counts}

    def samples() -> Iterator[Sample]:
        for entry in entries:
            if isinstance(entry, Rejected):
                rejected.append(entry)
            else:
                counts["samples"] += 1
                yield entry
        counts["rejected"] = len(rejected)
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in rejected)
        (folder / REJECTED).write_text(lines, encoding="utf-8")
        if not counts["samples"]:
            reasons = "; ".join(f"{each.key}: {each.reason}" for each in rejected[:3]) or "there were none"
            raise ValueError(f"none of the {len(rejected)} entries for {folder} can be used ({reasons})")

    return write_shards(folder, name, samples(), per_shard=per_shard, meta=found)
