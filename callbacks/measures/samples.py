"""Sample pictures: the same captions and random numbers at every step, to see the model learn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from callbacks.measures.measure import EvaluationContext, MeasureConfig, Result
from callbacks.measures.pictures import Drawing, PictureMeasure, SamplingConfig, decode
from callbacks.measures.records import Record
from callbacks.tracking import Tracker
from datamodules.benchmarks.coco import CaptionSet
from datamodules.encode import caption_overflow
from datamodules.images import to_image
from modules.files import step_name, write_json
from modules.omnimamba.tokenizer import TextTokenizer
from modules.reading import read_json, shown
from modules.run_files import SAMPLES

CAPTIONS = "captions.json"
"""What was drawn, beside its pictures."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(SamplingConfig, MeasureConfig):
    """What is drawn: ``prompts``, or ``n`` captions of a COCO captions file."""

    prompts: tuple[str, ...] = ()
    """Captions to draw."""
    captions: str = ""
    """COCO captions JSON."""
    images: str = ""
    """Folder of its pictures."""
    n: int = 16
    """How many captions to use from the file."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        if bool(self.prompts) == bool(self.captions):
            found.append("give either prompts or a captions file, and not both")
        if self.captions and not self.images:
            found.append("images is empty; name the folder of the pictures that the captions file lists")
        if self.captions and self.n < 1:
            found.append(f"n={self.n} must be at least 1")
        return found


class Samples(PictureMeasure):
    """Pictures for people to look at, logged and written to ``RUN/samples/<step>/``; it has no metric."""

    key: ClassVar[str] = "samples"
    config_type = SamplesConfig

    config: SamplesConfig

    @property
    def name(self) -> str:
        """``samples``."""
        return "samples"

    def read(self) -> list[Drawing]:
        """The prompts, or captions from the file."""
        if self.config.prompts:
            captions: list[tuple[str, Path | None]] = [(prompt, None) for prompt in self.config.prompts]
        else:
            file = CaptionSet.read(Path(self.config.captions), Path(self.config.images))
            captions = [(pair.caption, pair.image) for pair in file.choose(self.config.n, self.config.seed)]
        return [
            Drawing(sample_id=f"{index:03d}", index=index, caption=caption, image=image)
            for index, (caption, image) in enumerate(captions)
        ]

    def check(self, context: EvaluationContext) -> None:
        """Check also that no prompt would be cut."""
        super().check(context)
        for prompt in self.config.prompts:
            require_short(context.tokenizer, prompt, context.model.config.caption_length)

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Write the pictures, ``<id>.png``, and ``captions.json`` in the same folder."""
        folder = context.folder / SAMPLES / step_name(context.step)
        folder.mkdir(parents=True, exist_ok=True)
        for record, picture in zip(records, _pictures(context, records), strict=True):
            picture.save(folder / f"{record['sample_id']}.png")
        write_json(folder / CAPTIONS, {record["sample_id"]: record["prompt"] for record in records})
        return Result(metrics={}, standard_errors={}, baselines={}, protocol=self.traced(context, records))

    def publish(self, context: EvaluationContext, records: Sequence[Record], tracker: Tracker) -> None:
        """Log the pictures."""
        captions = [record["prompt"] for record in records]
        tracker.log_images(context.step, self.prefix, _pictures(context, records), captions)


def read_captions(path: Path) -> dict[str, str]:
    """The captions by sample id, which is also the name of the picture.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        captions = read_json(path, dict[str, str], "captions")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); its pictures are left out") from error
    if odd := [sample for sample in captions if Path(sample).name != sample or "\0" in sample]:
        raise ValueError(f"{path} is damaged: {shown(odd[0])} is no picture's name; its pictures are left out")
    return captions


def require_short(tokenizer: TextTokenizer, caption: str, length: int) -> None:
    """Raise ValueError if ``caption`` has more than ``length`` ids."""
    over = caption_overflow(tokenizer, caption, length)
    if over:
        raise ValueError(
            f"caption {caption!r} has {length + over} ids but model.caption_length={length}; shorten it by {over} ids"
        )


def _pictures(context: EvaluationContext, records: Sequence[Record]) -> list[Image.Image]:
    return [to_image(pixels) for batch in decode(context, records) for pixels in batch]
