"""COCO captions and images to T2I shards: five captions and the image's VQ codes per sample."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen
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
from modules.files import sha256
from modules.reading import read_json

CAPTIONS_PER_IMAGE = 5
"""A few COCO images have more; the published training data keep five."""
_Id = Annotated[int, Ge(0)]


class _Image(TypedDict):
    id: _Id
    file_name: Annotated[str, MinLen(1)]


class _Caption(TypedDict):
    id: _Id
    image_id: _Id
    caption: Any
    """A text; if it is not, its image is rejected."""


class _Captions(TypedDict):
    images: list[_Image]
    annotations: list[_Caption]


@dataclass(frozen=True, kw_only=True)
class CocoConfig(T2IConfig):
    """Where the official files are and where the shards go."""

    captions: str
    """COCO captions JSON, such as annotations/captions_train2014.json."""
    images: str
    """Folder of its images, such as train2014."""
    name: str = "coco2014-train"
    licence: str = "annotations CC BY 4.0; images under the terms of Flickr (cocodataset.org)"


def build_coco(config: CocoConfig, progress: Progress | None = None) -> Path:
    """Build the shards and return their manifest.

    Raises:
        FileNotFoundError: a file or folder of ``config`` is missing.
        ValueError: the captions file has another layout, or nothing in it can be used; see also `build_parts`.
        FileExistsError: ``config.out`` already holds another data set.
    """
    captions = Path(config.captions)
    rows = _rows(config.name, *_read_captions(captions))
    folder = need_folder(Path(config.images), "image folder")
    vq = describe_vq(config.vq)
    meta = {
        "source": "coco",
        "licence": config.licence,
        "captions": {"file": captions.name, "sha256": sha256(captions)},
        "vq": vq,
        "batch": config.batch,
    }
    make = T2IMaker(
        read=FileReader(folder),
        vq=config.vq,
        vq_fingerprint=vq["fingerprint"],
        batch=config.batch,
        captions_per_image=CAPTIONS_PER_IMAGE,
    )
    return build_parts(
        config,
        rows,
        image_of,
        make,
        meta=meta,
        processes=processes_for_pictures(config),
        progress=progress,
    )


def _read_captions(path: Path) -> tuple[dict[int, str], dict[int, list[Any]]]:
    """File name and captions by image id."""
    content = read_json(path, _Captions, "captions file")
    images = {image["id"]: image["file_name"] for image in content["images"]}
    by_image: dict[int, list[Any]] = defaultdict(list)
    for each in sorted(content["annotations"], key=lambda each: each["id"]):
        by_image[each["image_id"]].append(each["caption"])
    if len(images) != len(content["images"]):
        raise ValueError(
            f"captions file {path} lists {len(content['images'])} images but only {len(images)} different ids"
        )
    return images, by_image


def _rows(name: str, images: dict[int, str], by_image: dict[int, list[Any]]) -> list[CaptionedFile]:
    """A row for every image that the file lists or captions, in order of image id."""
    return [
        captioned_file(
            f"{name}-{image_id:012d}",
            images.get(image_id),
            by_image.get(image_id, []),
            about={"image_id": image_id},
        )
        for image_id in sorted({*images, *by_image})
    ]
