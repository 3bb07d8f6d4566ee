"""One sample of a data set, as the model sees it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.encode import IGNORE, PromptTemplate, encode_caption, encode_conversation
from datamodules.inspection.verify import PICTURES
from datamodules.shards.reader import ShardSet
from datamodules.stored import captions_of, content_of, turns_of
from modules.omnimamba.tokenizer import TextTokenizer

_NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class Token:
    """A position of the text sequence."""

    position: int
    id: int
    text: str
    """As in the vocabulary: Ġ stands for a space before a word."""
    label: int | None
    """The id to predict here; None: no loss."""


@dataclass(frozen=True, kw_only=True)
class Peek:
    """One sample."""

    index: int
    key: str
    shard: str
    payloads: dict[str, bytes]
    content: dict[str, Any]
    """Its text as stored."""


def peek(shards: ShardSet, wanted: str) -> Peek:
    """The sample whose key or number is ``wanted``.

    Raises:
        ValueError: there is no such sample (the message names similar keys), or its text is not a JSON object.
        DamagedShardError: a payload is not the one that was written.
    """
    index = _index(shards, wanted)
    payloads = shards.get(index)
    try:
        content = content_of(payloads.get("json", b"{}"))
    except ValueError as error:
        raise ValueError(f"{shards.key(index)}: its .json {error}; prepare the data again") from error
    return Peek(index=index, key=shards.key(index), shard=shards.shard_of(index), payloads=payloads, content=content)


def tokens(
    content: dict[str, Any],
    tokenizer: TextTokenizer,
    template: PromptTemplate,
    *,
    mmu_length: int,
    caption_length: int,
    caption: int = 0,
) -> list[Token]:
    """The text sequence of a sample: its conversation, or one of its captions.

    Raises:
        ValueError: it has neither, or the first question leaves no room for an answer.
    """
    if "conversations" in content:
        ids, labels = encode_conversation(tokenizer, turns_of(content), template, mmu_length)
        aligned = [IGNORE] * (len(ids) - len(labels)) + labels
    elif content.get("captions"):
        captions = captions_of(content)
        if not 0 <= caption < len(captions):
            raise ValueError(f"caption {caption} of {len(captions)}; they are counted from 0")
        ids = encode_caption(tokenizer, captions[caption], caption_length)
        aligned = [IGNORE] * len(ids)
    else:
        raise ValueError("the sample has neither conversations nor captions")
    return [
        Token(
            position=position,
            id=each,
            text=tokenizer.token(each),
            label=None if label == IGNORE else label,
        )
        for position, (each, label) in enumerate(zip(ids, aligned, strict=True))
    ]


def picture_of(sample: Peek) -> tuple[str, bytes] | None:
    """Extension and bytes of its picture; None if it has only codes."""
    return next(((kind, sample.payloads[kind]) for kind in PICTURES if kind in sample.payloads), None)


def codes_of(sample: Peek) -> NDArray[np.int64] | None:
    """VQ codes (I,) of a T2I sample; None if it has none."""
    payload = sample.payloads.get("vq")
    return None if payload is None else np.frombuffer(payload, "<u2").astype(np.int64)


def _index(shards: ShardSet, wanted: str) -> int:
    found = np.flatnonzero(shards.keys == wanted.encode())
    if found.size:
        return int(found[0])
    if wanted.isdecimal() and int(wanted) < len(shards):
        return int(wanted)
    raise ValueError(
        f"{wanted!r} is neither a key nor a number below {len(shards)}; "
        f"the nearest keys are {', '.join(nearest_keys(shards.keys, wanted))}"
    )


def nearest_keys(keys: NDArray[np.bytes_], wanted: str) -> list[str]:
    """The keys whose beginning and end share the most characters with ``wanted``."""
    text = np.frombuffer(wanted.encode(), np.uint8)
    signs = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), -1)
    lengths = np.char.str_len(keys)
    alike = np.zeros(len(keys), dtype=np.int64)
    for length in np.unique(lengths).tolist():
        rows, n = lengths == length, min(length, len(text))
        starts, ends = signs[rows, :n], signs[rows, length - n : length]
        for same in (starts == text[:n], (ends == text[len(text) - n :])[:, ::-1]):
            alike[rows] += np.logical_and.accumulate(same, axis=1).sum(1)
    return [bytes(keys[place]).decode() for place in np.argsort(-alike, kind="stable")[:_NEAREST]]
