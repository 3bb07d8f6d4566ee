"""Measures for which the model draws: captions to VQ codes, codes to pictures.

Records hold the codes, so pictures can be decoded again without drawing again.
"""

import hashlib
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Len, Lt
from torch import Tensor, nn

from callbacks.measures.measure import EvaluationContext, Measure
from callbacks.measures.records import Record
from callbacks.tracking import Tracker
from datamodules.encode import caption_overflow, encode_caption
from datamodules.images import to_image
from modules.json_lines import Keys
from modules.omnimamba.vq import ImageTokenizer
from modules.reading import checked
from modules.seeds import keyed_seed
from modules.unheard import unheard

log = logging.getLogger(__name__)
LOGGED_PICTURES = 16
NO_VQ = "model.vq is empty, so no picture can be decoded; name the image tokenizer's weights file"
GREEDY = 0.01
"""From this temperature or top_p on down, other tokens than the most likely one are hardly ever drawn."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How image tokens are drawn."""

    seed: int = 0
    """Seed of the random numbers, and of the choice of captions."""
    temperature: float = 1.0
    """1: the probabilities of the model. Below: nearer to the most likely tokens. Above: more varied."""
    top_k: int = 0
    """Keep only the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep only the most likely tokens whose probabilities add up to this; 1 keeps all."""
    guidance: float = 1.0
    """Classifier-free guidance: above 1, pictures follow their captions more closely and differ less. 1: none."""

    @property
    def greedy(self) -> str:
        """The setting under which nearly every token is the most likely one; empty if there is none."""
        limits = {"top_k": 1, "temperature": GREEDY, "top_p": GREEDY}
        found = [key for key, limit in limits.items() if 0 < getattr(self, key) <= limit]
        return f"{found[0]}={getattr(self, found[0])}" if found else ""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = []
        if self.temperature <= 0:
            found.append(f"temperature={self.temperature} must be above 0; top_k=1 is greedy")
        if self.top_k < 0:
            found.append(f"top_k={self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps all tokens")
        if not 0 <= self.guidance < math.inf:
            found.append(f"guidance={self.guidance} must be 0 or more; 1 is none, 2 to 4 are usual")
        return found


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A caption to draw. Its random numbers depend on ``index``."""

    sample_id: str
    index: int
    caption: str
    image: Path | None = None
    """The picture the caption was written for, if there is one."""


class PictureMeasure(Measure):
    """Draws a picture for every caption. A picture depends on seed and index, not on its batch or rank."""

    draws: ClassVar[bool] = True
    record_keys: ClassVar[Keys] = {"codes": list, "ids_cut": int}
    config: SamplingConfig

    @abstractmethod
    def read(self) -> list[Drawing]:
        """Read and check what to draw."""

    @cached_property
    def drawings(self) -> dict[str, Drawing]:
        """Sample id to drawing."""
        return {drawing.sample_id: drawing for drawing in self.read()}

    def check(self, context: EvaluationContext) -> None:
        """Read the captions; the run must have an image tokenizer."""
        require_vq(context)
        self.sample_ids()
        if not context.rank:
            warn_if_never_empty(context, self.name, self.config)

    def sample_ids(self) -> Sequence[str]:
        """Ids in the order of the captions."""
        return list(self.drawings)

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Captions, sampling and image tokenizer."""
        captions = "\n".join(f"{d.sample_id}\t{d.caption}" for d in self.drawings.values())
        return {
            "measure": self.name,
            "decoding": "sampling, inverse CDF in the order of ids",
            "seed": self.config.seed,
            "temperature": self.config.temperature,
            "top_k": self.config.top_k,
            "top_p": self.config.top_p,
            "captions": hashlib.sha256(captions.encode()).hexdigest(),
            "vq": require_vq(context).fingerprint,
            # left out without guidance, so that older records stay valid
            **({"guidance": self.config.guidance} if self.config.guidance != 1 else {}),
        }

    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        """Draw in batches."""
        for start in range(0, len(ids), context.batch_size):
            batch = [self.drawings[sample] for sample in ids[start : start + context.batch_size]]
            codes = draw(context, [d.caption for d in batch], [d.index for d in batch], self.config).tolist()
            length = context.model.config.caption_length
            yield [
                {
                    "sample_id": drawing.sample_id,
                    "split": self.key,
                    "prompt": drawing.caption,
                    "ids_cut": caption_overflow(context.tokenizer, drawing.caption, length),
                    "image": drawing.image.name if drawing.image else None,
                    "codes": row,
                }
                for drawing, row in zip(batch, codes, strict=True)
            ]

    def records(self, context: EvaluationContext) -> list[Record]:
        """All records, with codes that the image tokenizer can decode."""
        found, vq = super().records(context), require_vq(context)
        size, n = vq.codebook_size, vq.tokens_per_image
        kind: Any = Annotated[list[Annotated[int, Ge(0), Lt(size)]], Len(n, n)]
        for record in found:
            checked(record["codes"], kind, f"codes of record {record['sample_id']} of {self.name}")
        return found

    def publish(self, context: EvaluationContext, records: Sequence[Record], tracker: Tracker) -> None:
        """Log the first pictures."""
        first = records[:LOGGED_PICTURES]
        pictures = [to_image(pixels) for batch in decode(context, first) for pixels in batch]
        tracker.log_images(context.step, f"{self.prefix}/pictures", pictures, [record["prompt"] for record in first])


def draw(
    context: EvaluationContext,
    captions: Sequence[str],
    indices: Sequence[int],
    sampling: SamplingConfig,
    on_token: Callable[[], None] = unheard,
) -> Tensor:
    """VQ codes (B, image_tokens) for ``captions``; the random numbers of each depend on its index in ``indices``.

    ``on_token`` is called after each token.
    """
    config = context.model.config
    ids = [encode_caption(context.tokenizer, caption, config.caption_length) for caption in captions]
    numbers = torch.stack([uniforms(sampling.seed, index, config.image_tokens) for index in indices])
    return context.model.generate_image_ids(
        torch.tensor(ids, device=context.device),
        uniforms_BI=numbers.to(context.device),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        guidance=sampling.guidance,
        empty_ids_C=torch.tensor(encode_caption(context.tokenizer, "", config.caption_length), device=context.device),
        on_token=on_token,
    )


def warn_if_greedy(name: str, sampling: SamplingConfig) -> None:
    """Warn if the pictures of a measure hardly depend on random numbers."""
    if sampling.greedy:
        log.warning(
            "%s: %s is greedy, so a caption always gives the same picture and pictures hardly differ; the distance is "
            "then large for any model. Set top_k=0, temperature=1.0 and top_p=1.0",
            name,
            sampling.greedy,
        )


def warn_if_never_empty(context: EvaluationContext, name: str, sampling: SamplingConfig) -> None:
    """Warn if guidance compares with empty captions, and the model has never seen one."""
    if sampling.guidance != 1 and not context.caption_dropout:
        log.warning(
            "%s: guidance=%s compares with pictures of empty captions, but the model never saw an empty caption: it "
            "was trained with data.caption_dropout=0. Set guidance=1, or train with data.caption_dropout=0.1",
            name,
            sampling.guidance,
        )


def uniforms(seed: int, index: int, length: int) -> Tensor:
    """Random numbers in [0, 1) for one sample, float32 (length,). They depend only on seed and index."""
    generator = torch.Generator().manual_seed(keyed_seed(seed, "image tokens", index))
    return torch.rand(length, generator=generator)


def random_codes(vq: ImageTokenizer, seed: int, index: int) -> Tensor:
    """Codes of one sample, int64 (tokens_per_image,), each equally likely."""
    return (uniforms(seed, index, vq.tokens_per_image) * vq.codebook_size).long().clamp(max=vq.codebook_size - 1)


def decode(context: EvaluationContext, records: Sequence[Record]) -> Iterator[Tensor]:
    """Pictures of records in batches, uint8 (B, 3, H, W)."""
    vq = require_vq(context)
    for start in range(0, len(records), context.batch_size):
        batch = records[start : start + context.batch_size]
        yield vq.decode(torch.tensor([record["codes"] for record in batch], device=context.device))


def require_vq(context: EvaluationContext) -> ImageTokenizer:
    """The run's image tokenizer, moved to the device that draws: on a CPU it would keep the GPU waiting.

    Raises:
        ValueError: the run has none.
    """
    if context.vq is None:
        raise ValueError(NO_VQ)
    if isinstance(context.vq, nn.Module):
        context.vq.to(context.device)
    return context.vq
