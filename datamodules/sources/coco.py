"""COCO captions and images to T2I shards: five captions and the image's codes per sample."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

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

if TYPE_CHECKING:
    from modules.omnimamba.vq import ImageTokenizer

CAPTIONS_PER_IMAGE = 5
"""COCO has a few images with more; the published training data keep five."""


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """Where the official files lie and where the shards go."""

    captions: str
    """COCO captions JSON, such as annotations/captions_train2014.json."""
    images: str
    """Folder of its images, such as train2014."""
    vq: str
    """Image tokenizer file."""
    out: str
    """Folder for the shards."""
    name: str = "coco2014-train"
    """Starts the names of shards and keys."""
    per_shard: int = 8192
    batch: int = 64
    """Images tokenized at once."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        return [
            f"{key}={getattr(self, key)} must be at least 1" for key in ("per_shard", "batch") if getattr(self, key) < 1
        ]


def build_coco(config: CocoConfig) -> Path:
    """Build the shards and return their manifest.

    Images are cropped about their centre to a square and resized (Lanczos) to the tokenizer's size.

    Raises:
        FileNotFoundError: a file or folder of ``config`` is missing.
        ValueError: the captions file has another layout, or nothing in it can be used.
        FileExistsError: ``config.out`` already holds a data set.
    """
    from modules.omnimamba.vq import load_image_tokenizer

    captions = Path(config.captions)
    images, by_image = _read_captions(captions)
    folder = need_folder(Path(config.images), "image folder")
    vq = load_image_tokenizer(config.vq)
    counts: Counter[str] = Counter()
    meta = {
        "source": "coco",
        "captions": {"file": captions.name, "sha256": sha256(captions)},
        "vq": {
            "kind": vq.name,
            "fingerprint": vq.fingerprint,
            "codebook_size": vq.codebook_size,
            "image_size": vq.image_size,
            "tokens_per_image": vq.tokens_per_image,
        },
    }
    entries = _entries(config, images, by_image, folder, vq, counts)
    return build_shards(Path(config.out), config.name, entries, per_shard=config.per_shard, meta=meta, counts=counts)


def _read_captions(path: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """File name and captions by image id."""
    content = read_json(path, "captions file")
    try:
        images = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        by_image: dict[int, list[str]] = defaultdict(list)
        for each in sorted(content["annotations"], key=lambda each: int(each["id"])):
            # some of COCO's captions end in line breaks
            if caption := " ".join(each["caption"].split()):
                by_image[int(each["image_id"])].append(caption)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"captions file {path} has not COCO's layout ({type(error).__name__}: {error}); it needs images with id "
            "and file_name, and annotations with id, image_id and caption"
        ) from error
    if len(images) != len(content["images"]):
        raise ValueError(
            f"captions file {path} lists {len(content['images'])} images but only {len(images)} different ids"
        )
    return images, by_image


def _entries(
    config: CocoConfig,
    images: dict[int, str],
    by_image: dict[int, list[str]],
    folder: Path,
    vq: "ImageTokenizer",
    counts: Counter[str],
) -> Iterator[Sample | Rejected]:
    """Samples and rejects; samples in order of image id."""
    ready: list[tuple[int, Image.Image]] = []
    for image_id in sorted({*images, *by_image}):
        try:
            ready.append((image_id, _image(image_id, images, by_image, folder, vq.image_size)))
        except BadImageError as error:
            yield Rejected(key=_key(config, image_id), reason=str(error))
        if len(ready) == config.batch:
            yield from _tokenized(config, ready, by_image, vq, counts)
            ready = []
    if ready:
        yield from _tokenized(config, ready, by_image, vq, counts)


def _image(
    image_id: int, images: dict[int, str], by_image: dict[int, list[str]], folder: Path, size: int
) -> Image.Image:
    from datamodules.images import centre_crop

    if image_id not in images:
        raise BadImageError("captions for an image that the file does not list")
    if image_id not in by_image:
        raise BadImageError("no captions")
    return centre_crop(checked_image(folder / images[image_id])[1].convert("RGB"), size)


def _tokenized(
    config: CocoConfig,
    ready: list[tuple[int, Image.Image]],
    by_image: dict[int, list[str]],
    vq: "ImageTokenizer",
    counts: Counter[str],
) -> Iterator[Sample]:
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(image) for _, image in ready])).permute(0, 3, 1, 2).contiguous()
    codes = vq.encode(pixels).cpu().numpy().astype("<u2")
    for (image_id, _), row in zip(ready, codes, strict=True):
        captions = by_image[image_id][:CAPTIONS_PER_IMAGE]
        counts["captions_left_out"] += len(by_image[image_id]) - len(captions)
        counts["images_with_fewer_captions"] += len(captions) < CAPTIONS_PER_IMAGE
        content: dict[str, Any] = {"captions": captions, "image_id": image_id}
        yield _key(config, image_id), {"json": json.dumps(content).encode(), "vq": row.tobytes()}


def _key(config: CocoConfig, image_id: int) -> str:
    return f"{config.name}-{image_id:012d}"
