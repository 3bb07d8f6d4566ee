"""Fréchet distance of generated pictures from real ones.

``fid`` is the name of one protocol with one network; a distance on other features is ``fd_<extractor>``.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from callbacks.measure import EvaluationContext, Result, file_hashes
from callbacks.pictures import Drawing, PictureMeasure, SamplingConfig, decode, require_vq, uniforms
from callbacks.records import Record
from callbacks.tracking import Tracker
from datamodules.benchmarks.coco import CaptionSet
from datamodules.images import centre_crop, read_image, to_image, to_tensor
from modules.metrics.fid import EXTRACTORS, Moments, frechet

log = logging.getLogger(__name__)
LOGGED_PICTURES = 16


@dataclass(frozen=True, kw_only=True)
class FidConfig(SamplingConfig):
    """What is drawn, how much of it, and on which features it is compared."""

    captions: str
    """COCO captions JSON."""
    images: str
    """Folder of its pictures."""
    n: int
    """Pictures to draw, each for a caption of another real picture. Distances of different n are not comparable."""
    n_reference: int = 0
    """Real pictures to compare with; 0 takes all of the captions file."""
    extractor: Literal["pool"] = "pool"

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        if self.n < 2:
            found.append(f"n={self.n} must be at least 2: one picture has no covariance")
        if self.n_reference < 0 or self.n_reference == 1:
            found.append(f"n_reference={self.n_reference} must be 0 (all pictures) or at least 2")
        return found


class Fid(PictureMeasure):
    """``fd_<n>``, lower is better; ``rfd_<n>`` is the same of real pictures that went through the image tokenizer.

    Generated pictures consist of the tokenizer's codes, so ``rfd`` is the best that can be expected. The baseline is
    pictures of random codes, each equally likely.
    """

    task: ClassVar[str] = "fid"

    def __init__(self, config: FidConfig) -> None:
        super().__init__(config)
        self.config = config
        self._reference: Moments | None = None

    @property
    def name(self) -> str:
        """``fd_<extractor>``."""
        return f"fd_{self.config.extractor}"

    @cached_property
    def captions(self) -> CaptionSet:
        """The captions file."""
        return CaptionSet.read(Path(self.config.captions), Path(self.config.images))

    def read(self) -> list[Drawing]:
        """One caption each of n real pictures."""
        pairs = self.captions.choose(self.config.n, self.config.seed)
        return [
            Drawing(sample_id=f"{index:06d}", index=index, caption=pair.caption, image=pair.image)
            for index, pair in enumerate(pairs)
        ]

    @cached_property
    def reference(self) -> list[Path]:
        """The real pictures to compare with."""
        if not self.config.n_reference:
            return self.captions.all_images()
        return [pair.image for pair in self.captions.choose(self.config.n_reference, self.config.seed)]

    def check(self, context: EvaluationContext) -> None:
        """Also the reference pictures must exist."""
        super().check(context)
        if len(self.reference) < 2:
            raise ValueError(
                f"{self.config.captions} lists {len(self.reference)} pictures; a distance needs at least 2"
            )

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Also the captions file; the reference enters the score, not the pictures."""
        return super().protocol(context) | {"files": file_hashes([Path(self.config.captions)])}

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Distances from the reference: generated, reconstructed, random."""
        width, _ = EXTRACTORS[self.config.extractor]
        if len(records) <= width:
            log.warning("%s: %d pictures for features of width %d; expect a large bias", self.name, len(records), width)
        vq, n = require_vq(context), len(records)
        real = [drawing.image for drawing in self.drawings.values() if drawing.image]
        reconstructed = (vq.decode(vq.encode(images)) for images in self._real(context, real))
        reference = self._reference_moments(context)

        def distance(pictures: Iterable[Tensor]) -> float:
            moments = self._moments(pictures)
            return frechet(moments.mean, moments.covariance, reference.mean, reference.covariance)

        return Result(
            metrics={f"fd_{n}": distance(decode(context, records)), f"rfd_{n}": distance(reconstructed)},
            standard_errors={},
            baselines={f"fd_{n}": distance(decode(context, self._random_codes(vq.codebook_size, vq.tokens_per_image)))},
            protocol=self.traced(
                context,
                records,
                n_reference=reference.n,
                preprocessing=f"centre crop, LANCZOS to {vq.image_size}",
                captions_cut=sum(record["ids_cut"] > 0 for record in records),
                baseline="pictures of uniformly random codes",
            ),
        )

    def publish(self, context: EvaluationContext, records: Sequence[Record], tracker: Tracker) -> None:
        """Log the first pictures."""
        first = records[:LOGGED_PICTURES]
        pictures = [to_image(pixels) for batch in decode(context, first) for pixels in batch]
        tracker.log_images(context.step, f"eval/{self.name}/pictures", pictures, [record["prompt"] for record in first])

    def _reference_moments(self, context: EvaluationContext) -> Moments:
        """Kept for the next evaluation: the reference does not change."""
        if self._reference is None:
            self._reference = self._moments(self._real(context, self.reference))
        return self._reference

    def _moments(self, pictures: Iterable[Tensor]) -> Moments:
        width, extract = EXTRACTORS[self.config.extractor]
        moments = Moments.empty(width)
        for batch in pictures:
            moments = moments.add(extract(batch).cpu().numpy())
        return moments

    def _real(self, context: EvaluationContext, paths: Sequence[Path]) -> Iterator[Tensor]:
        """Real pictures in batches, as the image tokenizer sees them."""
        size = require_vq(context).image_size
        for start in range(0, len(paths), context.batch_size):
            batch = paths[start : start + context.batch_size]
            yield torch.stack([to_tensor(centre_crop(read_image(path), size)) for path in batch]).to(context.device)

    def _random_codes(self, codebook_size: int, length: int) -> list[Record]:
        numbers = (uniforms(self.config.seed, drawing.index, length) for drawing in self.drawings.values())
        return [{"codes": (row * codebook_size).long().clamp(max=codebook_size - 1).tolist()} for row in numbers]
