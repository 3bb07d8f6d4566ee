"""T2I shards: captions and the codes of a picture per sample."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.shards.builder import Rejected, Row
from datamodules.shards.reader import Sample
from datamodules.shards.workers import worker_number
from datamodules.sources.common import BadEntryError, SourceConfig, clean_captions, decoded, processes_of, read_file

if TYPE_CHECKING:
    from PIL import Image

    from modules.omnimamba.vq import ImageTokenizer

_WORKERS_PER_GPU = 16
"""Enough to keep a GPU busy with pictures; each has its own CUDA context of about 0.5 GB there."""


@dataclass(frozen=True, kw_only=True)
class T2IConfig(SourceConfig):
    """What the sources of T2I shards have in common."""

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
    """What becomes a T2I sample."""

    file: str
    captions: list[str]
    content: bytes
    """The picture's file."""
    about: Mapping[str, Any]
    """What else the sample's JSON says."""


@dataclass(frozen=True, kw_only=True)
class CaptionedFile:
    """Row of a plan: a picture in a folder and its captions, or why there is none."""

    key: str
    file: str = ""
    captions: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


def captioned_file(key: str, file: str | None, captions: Sequence[Any], about: Mapping[str, Any]) -> CaptionedFile:
    """The row of ``file``, None if it is not known, with its captions as they are given; a fault becomes part of it."""
    try:
        if file is None:
            raise BadEntryError("captions for an image that the file does not list")
        cleaned = tuple(clean_captions(captions))
    except BadEntryError as error:
        return CaptionedFile(key=key, fault=str(error))
    return CaptionedFile(key=key, file=file, captions=cleaned, about=about)


@dataclass(frozen=True)
class FileReader:
    """Reads the pictures of `CaptionedFile` rows."""

    folder: Path

    def __call__(self, row: CaptionedFile) -> CaptionedPicture:
        """The captions and picture of ``row``.

        Raises:
            BadEntryError: there is a fault in the row, or the file cannot be read.
        """
        if row.fault:
            raise BadEntryError(row.fault)
        content = read_file(self.folder, row.file)
        return CaptionedPicture(file=row.file, captions=list(row.captions), content=content, about=row.about)


@dataclass(frozen=True, kw_only=True)
class T2IMaker:
    """Turns rows into T2I samples: ``.json`` with the captions, ``.vq`` with the codes as little-endian uint16.

    Pictures are turned upright, cropped about their centre to a square and resized (Lanczos) to the tokenizer's size.
    """

    read: Callable[[Any], CaptionedPicture]
    vq: str
    vq_fingerprint: str
    batch: int
    captions_per_image: int | None = None
    """Captions kept of each picture; None keeps all."""

    def __call__(self, rows: Sequence[Row], counts: Counter[str]) -> Iterator[Sample | Rejected]:
        """A sample or a reject per row; the samples in the rows' order."""
        from datamodules.images import centre_crop

        tokenizer = _load(self.vq, self.vq_fingerprint, device_of(worker_number()))
        ready: list[tuple[str, CaptionedPicture, Image.Image]] = []
        for row in rows:
            try:
                entry = self.read(row)
                picture = decoded(entry.content, entry.file)
            except BadEntryError as error:
                yield Rejected(key=row.key, reason=str(error))
                continue
            ready.append((row.key, entry, centre_crop(picture, tokenizer.image_size)))
            if len(ready) == self.batch:
                yield from self._samples(ready, tokenizer, counts)
                ready = []
        if ready:
            yield from self._samples(ready, tokenizer, counts)

    def _samples(
        self,
        ready: "Sequence[tuple[str, CaptionedPicture, Image.Image]]",
        tokenizer: "ImageTokenizer",
        counts: Counter[str],
    ) -> Iterator[Sample]:
        import torch

        from datamodules.images import to_tensor

        codes = tokenizer.encode(torch.stack([to_tensor(picture) for _, _, picture in ready]))
        for (key, entry, _), row in zip(ready, codes.cpu().numpy().astype("<u2"), strict=True):
            captions = entry.captions[: self.captions_per_image]
            if self.captions_per_image:
                counts["captions_left_out"] += len(entry.captions) - len(captions)
                counts["images_with_fewer_captions"] += len(captions) < self.captions_per_image
            content = {"captions": captions, **entry.about}
            yield key, {"json": json.dumps(content).encode(), "vq": row.tobytes()}


def describe_vq(path: str) -> dict[str, Any]:
    """What a manifest says of the image tokenizer in ``path``, and of the kind of device that it runs on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image tokenizer.
    """
    from modules.omnimamba.vq import load_image_tokenizer

    tokenizer = load_image_tokenizer(path)
    return {
        "kind": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.codebook_size,
        "image_size": tokenizer.image_size,
        "tokens_per_image": tokenizer.tokens_per_image,
        # the last bits of what a network computes differ between a CPU and a GPU
        "device": device_of(0).split(":")[0],
    }


def processes_for_pictures(config: SourceConfig) -> int:
    """Number of processes for tokenizing pictures: all cores means no more than the GPUs, if any, have room for."""
    import torch

    gpus = torch.cuda.device_count()
    return processes_of(config) if config.processes or not gpus else min(processes_of(config), _WORKERS_PER_GPU * gpus)


def device_of(worker: int) -> str:
    """The device that a worker tokenizes on: the GPUs in turn, or the CPU where there is none."""
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{worker % gpus}" if gpus else "cpu"


@lru_cache(maxsize=1)
def _load(path: str, fingerprint: str, device: str) -> "ImageTokenizer":
    """Kept for the next shard; by its fingerprint, as the next build may find another file in the same place."""
    from torch import nn

    from modules.omnimamba.vq import load_image_tokenizer

    tokenizer = load_image_tokenizer(path)
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"image tokenizer {path} was changed while shards were built with it; put the former back and start again, "
            "or delete the folder and build anew"
        )
    if isinstance(tokenizer, nn.Module):
        tokenizer.to(device)
    return tokenizer
