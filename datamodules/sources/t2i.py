"""T2I shards: captions and the VQ codes of a picture per sample."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.shards.builder import Rejected, Row
from datamodules.shards.reader import Sample
from datamodules.shards.workers import worker_number
from datamodules.sources.common import (
    ON_WHITE,
    BadEntryError,
    SourceConfig,
    as_json,
    clean_captions,
    clean_text,
    decoded,
    processes_of,
    read_file,
)

if TYPE_CHECKING:
    from PIL import Image

    from modules.omnimamba.vq import ImageTokenizer

_WORKERS_PER_GPU = 16
"""Enough to keep a GPU busy with pictures; each has its own CUDA context of about 0.5 GB of GPU memory."""


@dataclass(frozen=True, kw_only=True)
class T2IConfig(SourceConfig):
    """Settings that all sources of T2I shards share."""

    vq: str
    """Image tokenizer file."""
    per_shard: int = 8192
    batch: int = 64
    """Images tokenized at once."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        return found if self.batch >= 1 else [*found, f"batch={self.batch} must be at least 1"]


@dataclass(frozen=True, kw_only=True)
class CaptionedPicture:
    """The content of a T2I sample."""

    file: str
    captions: list[str]
    content: bytes
    """The picture file."""
    about: Mapping[str, Any]
    """Further entries of the sample's JSON."""


@dataclass(frozen=True, kw_only=True)
class CaptionedFile:
    """Row of a plan: a picture in a folder and its captions, or the fault that rules it out."""

    key: str
    file: str = ""
    captions: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


def captioned_file(key: str, file: str | None, captions: Sequence[Any], about: Mapping[str, Any]) -> CaptionedFile:
    """The row of ``file`` with its cleaned captions, or with a fault; ``file`` is None for an unlisted image."""
    try:
        if file is None:
            raise BadEntryError("captions for an image that the file does not list")
        file, cleaned = clean_text(file, "image name"), tuple(clean_captions(captions))
    except BadEntryError as error:
        return CaptionedFile(key=key, fault=str(error))
    return CaptionedFile(key=key, file=file, captions=cleaned, about=about)


def image_of(row: CaptionedFile) -> str:
    """The name of the row's picture."""
    return row.file or row.key


@dataclass(frozen=True)
class FileReader:
    """Reads the pictures of `CaptionedFile` rows."""

    folder: Path

    def __call__(self, row: CaptionedFile) -> CaptionedPicture:
        """The captions and picture of ``row``.

        Raises:
            BadEntryError: the row has a fault, or the file cannot be read.
        """
        if row.fault:
            raise BadEntryError(row.fault)
        content = read_file(self.folder, row.file)
        return CaptionedPicture(file=row.file, captions=list(row.captions), content=content, about=row.about)


@dataclass(frozen=True, kw_only=True)
class T2IMaker:
    """Turns rows into T2I samples: ``.json`` with the captions, ``.vq`` with the codes as little-endian uint16.

    Pictures are rotated upright, laid onto white where they are transparent, cropped to the central square and resized
    (Lanczos) to the tokenizer's size.
    """

    read: Callable[[Any], CaptionedPicture]
    vq: str
    vq_fingerprint: str
    batch: int
    captions_per_image: int | None = None
    """Captions kept per picture; None keeps all."""

    def __call__(self, rows: Sequence[Row], counts: Counter[str]) -> Iterator[Sample | Rejected]:
        """A sample or a reject per row; the samples in the rows' order."""
        from datamodules.images import centre_crop

        tokenizer = _load(self.vq, self.vq_fingerprint, device_of(worker_number()))
        ready: list[tuple[str, bytes, Image.Image]] = []
        for row in rows:
            try:
                entry = self.read(row)
                captions = entry.captions[: self.captions_per_image]
                content = as_json({"captions": captions, **entry.about})
                picture = decoded(entry.content, entry.file)
            except BadEntryError as error:
                yield Rejected(key=row.key, reason=str(error))
                continue
            self._count(counts, entry.captions, on_white=picture.on_white)
            ready.append((row.key, content, centre_crop(picture.image, tokenizer.image_size)))
            if len(ready) == self.batch:
                yield from _samples(ready, tokenizer)
                ready = []
        if ready:
            yield from _samples(ready, tokenizer)

    def _count(self, counts: Counter[str], captions: Sequence[str], *, on_white: bool) -> None:
        if on_white:
            counts[ON_WHITE] += 1
        if self.captions_per_image:
            counts["captions_left_out"] += max(0, len(captions) - self.captions_per_image)
            counts["images_with_fewer_captions"] += len(captions) < self.captions_per_image


def _samples(ready: "Sequence[tuple[str, bytes, Image.Image]]", tokenizer: "ImageTokenizer") -> Iterator[Sample]:
    """Samples of keys, their JSON and their pictures."""
    import torch

    from datamodules.images import to_tensor

    codes = tokenizer.encode(torch.stack([to_tensor(picture) for _, _, picture in ready]))
    for (key, content, _), row in zip(ready, codes.cpu().numpy().astype("<u2"), strict=True):
        yield key, {"json": content, "vq": row.tobytes()}


def describe_vq(path: str) -> dict[str, Any]:
    """Describe the image tokenizer in ``path``, and the kind of device it runs on, for a manifest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image tokenizer.
    """
    from modules.omnimamba.vq import load_image_tokenizer

    tokenizer = load_image_tokenizer(path)
    return {
        "kind": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.codebook_size,
        "image_size": tokenizer.image_size,
        "tokens_per_image": tokenizer.tokens_per_image,
        # the last bits of a network's results differ between CPU and GPU
        "device": device_of(0).split(":")[0],
    }


def processes_for_pictures(config: SourceConfig) -> int:
    """Number of processes for tokenizing pictures; 0 means all cores, but no more than the GPUs, if any, can hold."""
    import torch

    gpus = torch.cuda.device_count()
    return processes_of(config) if config.processes or not gpus else min(processes_of(config), _WORKERS_PER_GPU * gpus)


def device_of(worker: int) -> str:
    """The device that a worker tokenizes on: the GPUs in turn, or the CPU if there are none."""
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{worker % gpus}" if gpus else "cpu"


@lru_cache(maxsize=1)
def _load(path: str, fingerprint: str, device: str) -> "ImageTokenizer":
    """The image tokenizer, cached for the next shard, by fingerprint, because the file may change between builds."""
    from torch import nn

    from modules.omnimamba.vq import load_image_tokenizer

    tokenizer = load_image_tokenizer(path)
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"image tokenizer {path} was changed while shards were built with it; restore it and start again, "
            "or delete the folder and start over"
        )
    if isinstance(tokenizer, nn.Module):
        tokenizer.to(device)
    return tokenizer
