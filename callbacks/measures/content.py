"""Content: whether drawn scenes show the objects that their captions name, with their colours, shapes and places."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from callbacks.measures.measure import EvaluationContext, MeasureConfig, Result
from callbacks.measures.pictures import Drawing, PictureMeasure, SamplingConfig, decode, random_codes, require_vq
from callbacks.measures.records import Record
from datamodules.benchmarks.coco import CaptionSet
from datamodules.images import centre_crop, read_image, to_tensor
from datamodules.scenes.draw import IMAGE_SIZE
from datamodules.scenes.language import named
from datamodules.scenes.look import look
from modules.files import file_hashes
from modules.metrics.content import Score, score, tally


@dataclass(frozen=True, kw_only=True)
class ContentConfig(SamplingConfig, MeasureConfig):
    """Which captions of embedded scenes are drawn."""

    captions: str
    """COCO captions JSON of the scenes."""
    images: str
    """Folder of its pictures."""
    n: int = 256
    """How many pictures to draw, each for a caption of a different scene."""
    objects: int = 0
    """Only captions that name this many objects; 0: any number."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        if self.n < 2:
            found.append(f"n={self.n} must be at least 2: one caption cannot be exchanged with another")
        if self.objects < 0:
            found.append(f"objects={self.objects} must be 0 (any number) or more")
        return found

    def reduced(self, most: int) -> Self | None:
        """The same with at most ``most`` pictures."""
        return replace(self, n=min(most, self.n))


class Content(PictureMeasure):
    """``content`` and its parts (`modules.metrics.content`), read from the pixels of the generated pictures.

    The baseline holds the same pictures against each other's captions. Beside it stand, as ``real/...``,
    ``reconstructed/...`` and ``random/...``: real scenes, which show what the reader can read; the same through the
    image tokenizer, the best that can be drawn; and pictures of random codes.
    """

    key: ClassVar[str] = "content"
    config_type = ContentConfig

    config: ContentConfig

    def __init__(self, config: ContentConfig) -> None:
        super().__init__(config)
        self._beside: dict[str, Score] = {}
        """Scores that do not depend on the model."""

    @property
    def name(self) -> str:
        """``content_scenes``."""
        return "content_scenes" + ("_mini" if self.mini else "")

    def read(self) -> list[Drawing]:
        """The chosen captions."""
        config = self.config
        captions = CaptionSet.read(Path(config.captions), Path(config.images)).only(self._suits)
        return [
            Drawing(sample_id=f"{index:06d}", index=index, caption=pair.caption, image=pair.image)
            for index, pair in enumerate(captions.choose(config.n, config.seed))
        ]

    def _suits(self, caption: str) -> bool:
        number = len(named(caption))
        return number == self.config.objects if self.config.objects else number > 0

    def check(self, context: EvaluationContext) -> None:
        """Check also that pictures have the size of scenes."""
        super().check(context)
        size = require_vq(context).image_size
        if size != IMAGE_SIZE:
            raise ValueError(
                f"{self.name}: the image tokenizer makes pictures of {size} px, and scenes have {IMAGE_SIZE} px; leave "
                "evaluation.content out, or name the scenes' tokenizer as model.vq"
            )

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Add the captions file."""
        return super().protocol(context) | {"files": file_hashes([Path(self.config.captions)])}

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Look at the pictures, and at those beside them."""
        captions = [record["prompt"] for record in records]
        pictures = list(decode(context, records))
        drawn = _score(captions, pictures)
        if not self._beside:
            self._beside = {name: _score(captions, made) for name, made in self._pictures_beside(context).items()}
        beside = {f"{name}/{key}": value for name, each in self._beside.items() for key, value in each.metrics.items()}
        return Result(
            metrics=drawn.metrics | beside,
            standard_errors=drawn.standard_errors,
            baselines=_score(captions[1:] + captions[:1], pictures).metrics,
            counts=drawn.counts,
            protocol=self.traced(context, records, baseline="the same pictures under each other's captions"),
        )

    def _pictures_beside(self, context: EvaluationContext) -> dict[str, Iterator[Tensor]]:
        vq, drawings, batch = require_vq(context), list(self.drawings.values()), context.batch_size

        def batches() -> Iterator[list[Drawing]]:
            return (drawings[start : start + batch] for start in range(0, len(drawings), batch))

        def real(some: Sequence[Drawing]) -> Tensor:
            read = [to_tensor(centre_crop(read_image(each.image), IMAGE_SIZE)) for each in some if each.image]
            return torch.stack(read).to(context.device)

        def noise(some: Sequence[Drawing]) -> Tensor:
            return torch.stack([random_codes(vq, self.config.seed, each.index) for each in some]).to(context.device)

        return {
            "real": (real(some) for some in batches()),
            "reconstructed": (vq.decode(vq.encode(real(some))) for some in batches()),
            "random": (vq.decode(noise(some)) for some in batches()),
        }


def _score(captions: Sequence[str], pictures: Iterable[Tensor]) -> Score:
    """The score of batches of pictures, each of which should show what its caption names."""
    seen = [objects for batch in pictures for objects in look(batch)]
    return score([tally(named(caption), objects) for caption, objects in zip(captions, seen, strict=True)])
