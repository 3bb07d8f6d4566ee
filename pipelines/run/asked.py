"""What may be asked of a trained model: captions, questions and sampling settings are checked before it works."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from callbacks.measures.pictures import NO_VQ, SamplingConfig
from callbacks.measures.samples import SamplesConfig, require_short
from datamodules.images import ImageSource, StoredImage
from modules.omnimamba.tokenizer import TextTokenizer
from pipelines.run.config import RunConfig


def sampling_of(config: RunConfig, **given: Any) -> SamplingConfig:
    """The sampling settings of the run's ``evaluation.samples``, changed by those given that are not None.

    Raises:
        ValueError: a setting is unknown or out of range.
    """
    base = config.evaluation.section(SamplesConfig) or SamplingConfig()
    values = {name: getattr(base, name) for name in SamplingConfig.__dataclass_fields__}
    if unknown := sorted(given.keys() - values.keys()):
        raise ValueError(f"unknown sampling setting {unknown[0]}; known are {', '.join(values)}")
    sampling = SamplingConfig(**values | {name: value for name, value in given.items() if value is not None})
    if problems := sampling.problems():
        raise ValueError("; ".join(problems))
    return sampling


def require_drawable(config: RunConfig, tokenizer: TextTokenizer, caption: str) -> None:
    """Raise ValueError if ``caption`` is empty or too long, or the run cannot decode pictures."""
    if not caption.strip():
        raise ValueError("the caption is empty; say what to draw")
    if not config.model.vq:
        raise ValueError(NO_VQ)
    require_short(tokenizer, caption, config.model.caption_length)


def require_question(question: str, max_new_tokens: int | None = None) -> None:
    """Raise ValueError if ``question`` is empty, or no token is asked for."""
    if not question.strip():
        raise ValueError('the question is empty; ask something, for example "What is in the image?"')
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")


def source_of(image: str | Path | Image.Image) -> ImageSource:
    """A picture as measures take it: a file, or the bytes of one."""
    if not isinstance(image, Image.Image):
        return Path(image)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return StoredImage(payload=buffer.getvalue(), where="the picture given", name="picture.png")
