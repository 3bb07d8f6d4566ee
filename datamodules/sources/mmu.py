"""MMU shards: a conversation and its picture's original bytes per sample."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.shards.builder import Rejected, Row
from datamodules.shards.reader import Sample
from datamodules.sources.common import ON_WHITE, BadEntryError, as_json, clean_text, decoded

IMAGE_MARK = "<image>"
_SPEAKERS = ("human", "gpt")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The content of an MMU sample."""

    id: str
    turns: list[dict[str, str]]
    file: str
    """The picture's name."""
    content: bytes
    """The picture file."""


@dataclass(frozen=True, kw_only=True)
class MMUMaker:
    """Turns rows into MMU samples: ``.json`` with the conversation, ``.jpg`` with the picture.

    JPEG files are copied byte for byte, including those in CMYK or rotated by EXIF. Other formats are converted to
    JPEG of quality 95, with white where they are transparent, and counted.
    """

    read: Callable[[Any], Conversation]
    source: str
    """The ``source`` that the samples name."""

    def __call__(self, rows: Sequence[Row], counts: Counter[str]) -> Iterator[Sample | Rejected]:
        """A sample or a reject per row, in the rows' order."""
        for row in rows:
            try:
                entry = self.read(row)
                content = {
                    "id": entry.id,
                    "conversations": entry.turns,
                    "image": entry.file,
                    "source": self.source,
                }
                sample = {"json": as_json(content), "jpg": _as_jpeg(entry, counts)}
            except BadEntryError as error:
                yield Rejected(key=row.key, reason=str(error))
                continue
            yield row.key, sample


def checked_turns(conversation: Any) -> list[dict[str, str]]:
    """The turns of a LLaVA conversation, reduced to ``from`` and ``value``.

    Raises:
        BadEntryError: they are not pairs of human and gpt with text, or ``<image>`` is not once in the first turn
            and nowhere else.
    """
    if not isinstance(conversation, list) or not conversation or len(conversation) % 2:
        raise BadEntryError("conversations must be a non-empty list of human and gpt turns in pairs")
    turns = []
    for number, turn in enumerate(conversation):
        speaker = _SPEAKERS[number % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            raise BadEntryError(f"turn {number} is not from {speaker!r}")
        value = clean_text(turn.get("value"), f"turn {number}")
        marks = value.count(IMAGE_MARK)
        if marks != (number == 0):
            raise BadEntryError(
                f"turn {number} holds {IMAGE_MARK} {marks} times: turn 0 must hold it once, the others not at all"
            )
        if number and not value.strip():
            raise BadEntryError(f"turn {number} is empty")
        turns.append({"from": speaker, "value": value})
    return turns


def question_and_answer(question: Any, answer: Any) -> list[dict[str, str]]:
    """The turns of one question about a picture and its answer; a missing ``<image>`` is put in front.

    Raises:
        BadEntryError: see `checked_turns`.
    """
    question, answer = clean_text(question, "question"), clean_text(answer, "answer")
    asked = question if IMAGE_MARK in question else f"{IMAGE_MARK}\n{question}"
    return checked_turns([{"from": "human", "value": asked}, {"from": "gpt", "value": answer}])


def _as_jpeg(entry: Conversation, counts: Counter[str]) -> bytes:
    picture = decoded(entry.content, entry.file)
    # MPO is a JPEG followed by further pictures
    if picture.kind in ("JPEG", "MPO"):
        return entry.content
    buffer = io.BytesIO()
    picture.image.save(buffer, "JPEG", quality=95)
    counts[f"converted_from_{picture.kind.lower()}"] += 1
    if picture.on_white:
        counts[ON_WHITE] += 1
    return buffer.getvalue()
