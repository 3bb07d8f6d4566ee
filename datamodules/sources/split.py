"""Keeps the samples of some pictures apart, to measure the loss on what is never trained on."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.shards.builder import Make, Progress, RowT, build_shards
from datamodules.shards.manifest import MANIFEST
from datamodules.sources.common import SourceConfig

VAL = "val"
"""Folder of the validation shards, within that of the others."""


def build_parts(
    config: SourceConfig,
    rows: Sequence[RowT],
    image_of: Callable[[RowT], str],
    make: Make[RowT],
    *,
    meta: Mapping[str, Any],
    counts: Mapping[str, int] | None = None,
    processes: int,
    progress: Progress | None = None,
) -> Path:
    """Build the shards of ``rows`` in ``config.out`` and return their manifest.

    With ``val_share``, rows of that share of the pictures go to ``config.out/val`` instead. ``image_of`` names a row's
    picture. Raises like `build_shards`; also ValueError if one of the two parts would be empty.
    """
    out, parts = Path(config.out), {"": rows}
    about: dict[str, dict[str, Any]] = {"": {}}
    if config.val_share:
        apart = [is_held_out(image_of(row), config.val_share) for row in rows]
        parts = {
            "": [row for row, held in zip(rows, apart, strict=True) if not held],
            VAL: [row for row, held in zip(rows, apart, strict=True) if held],
        }
        about = {part: {"val_share": config.val_share, "part": part or "train"} for part in parts}
        if empty := [part or "training" for part, chosen in parts.items() if not chosen]:
            raise ValueError(
                f"val_share={config.val_share} of the {len(rows)} entries leaves none for {empty[0]}; choose another"
            )
    done = 0
    for part, chosen in parts.items():
        build_shards(
            out / part,
            f"{config.name}-{part}" if part else config.name,
            chosen,
            make,
            per_shard=config.per_shard,
            meta={**meta, **about[part]},
            counts=None if part else counts,
            processes=processes,
            progress=progress and _of_all(progress, done, len(rows)),
        )
        done += len(chosen)
    return manifests(config)[0]


def _of_all(progress: Progress, before: int, of: int) -> Progress:
    return lambda done, _: progress(before + done, of)


def manifests(config: SourceConfig) -> list[Path]:
    """The manifests that a build writes."""
    folders = [Path(config.out), *([Path(config.out) / VAL] if config.val_share else [])]
    return [folder / MANIFEST for folder in folders]


def is_held_out(image: str, share: float) -> bool:
    """Whether a picture is for validation.

    That depends on its name and ``share`` alone: a larger share holds the pictures of a smaller one, and data sets that
    name a picture alike put it on the same side.
    """
    digest = hashlib.sha256(f"val {PurePosixPath(image)}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") < share * 2**56
