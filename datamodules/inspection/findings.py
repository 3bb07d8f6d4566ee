"""What a survey of a data set collects, sample by sample."""

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from datamodules.encode import PromptTemplate, encode_conversation
from datamodules.images import opened
from datamodules.inspection.evaluation_images import digest, picture_name
from datamodules.inspection.verify import PICTURES
from datamodules.stored import captions_of, content_of, turns_of
from modules.omnimamba.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, TextTokenizer

MMU_LENGTH, MMU_FRAME, MMU_IMAGE = 449, 4, 729
"""Text ids, special ids and image positions of an MMU sequence of the published model."""
T2I_LENGTH, T2I_FRAME = 68, 5
"""Caption ids and special ids of a T2I sequence of the published model."""
_ENDLESS = 2**40


@dataclass(frozen=True, kw_only=True)
class SurveyConfig:
    """What to look for."""

    tokenizer: str = ""
    """A tokenizer.json; without it, text lengths are not measured."""
    length: int | None = None
    """Fixed length of every text in ids; None: that of the published model."""
    image_positions: int = MMU_IMAGE
    """Positions of the image in an MMU sequence."""
    template: PromptTemplate = field(default_factory=PromptTemplate)

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = []
        if self.length is not None and self.length < 1:
            found.append(f"length={self.length} must be at least 1")
        if self.image_positions < 0:
            found.append(f"image_positions={self.image_positions} must not be negative")
        return found


@dataclass(kw_only=True)
class Findings:
    """What was found so far; each list is in sample order."""

    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    captions: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    no_room: int = 0
    spelled: int = 0
    """Texts that spell a special token."""
    unreadable: int = 0
    contents: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    names: list[int] = field(default_factory=list)
    """0 for a sample that names no picture."""


def add_sample(
    found: Findings, sample: dict[str, bytes], tokenizer: TextTokenizer | None, config: SurveyConfig
) -> None:
    """Add ``sample`` to the findings. An unreadable sample is counted, and adds what could be read of it."""
    picture = next((sample[kind] for kind in PICTURES if kind in sample), None)
    name = None
    try:
        if picture is not None:
            with opened(picture) as image:
                found.widths.append(image.width)
                found.heights.append(image.height)
        content = content_of(sample.get("json", b"{}"))
        name = content.get("image", content.get("image_id"))
        _add_text(found, content, tokenizer, config)
    except Exception:  # noqa: BLE001  # on damaged files, Pillow's plugins raise all kinds of errors
        found.unreadable += 1
    if isinstance(name, (str, int)):
        found.files.append(digest(str(name).encode(errors="surrogatepass")))
        found.names.append(digest(picture_name(name).encode(errors="surrogatepass")))
    else:
        found.files.append(0)
        found.names.append(0)
    found.contents.append(digest(picture if picture is not None else sample.get("vq", b"")))


def _add_text(found: Findings, content: Any, tokenizer: TextTokenizer | None, config: SurveyConfig) -> None:
    if "captions" in content:
        captions = captions_of(content)
        found.captions.append(len(captions))
        found.spelled += sum(_spells(caption, tokenizer) for caption in captions)
        if tokenizer is not None:
            lengths = [len(tokenizer.encode(caption)) for caption in captions]
            found.lengths += lengths
            found.kept += [min(length, config.length or T2I_LENGTH) for length in lengths]
    elif "conversations" in content:
        turns = turns_of(content)
        found.turns.append(len(turns))
        found.spelled += _spells("\n".join(chain.from_iterable(turns)), tokenizer)
        if tokenizer is not None:
            _add_conversation(found, turns, tokenizer, config)


def _spells(text: str, tokenizer: TextTokenizer | None) -> bool:
    """Whether ``text`` spells a special token."""
    spellings = tokenizer.spellings if tokenizer else (*SPECIAL_TOKENS, END_OF_TEXT)
    return any(spelling in text for spelling in spellings)


def _add_conversation(
    found: Findings, turns: list[tuple[str, str]], tokenizer: TextTokenizer, config: SurveyConfig
) -> None:
    def ids(length: int) -> int:
        return len(encode_conversation(tokenizer, turns, config.template, length, pad=False)[0]) - MMU_FRAME

    whole, length = ids(_ENDLESS), config.length or MMU_LENGTH
    found.lengths.append(whole)
    try:
        found.kept.append(whole if whole <= length else ids(length))
    except ValueError:
        found.no_room += 1
