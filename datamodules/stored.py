"""Read and check the stored payloads of a sample, for training, tools and tables alike."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def content_of(payload: bytes) -> dict[str, Any]:
    """The object in a ``.json`` payload.

    Raises:
        ValueError: it is not an object, or holds half of a surrogate pair, which no tokenizer accepts.
    """
    try:
        content = json.loads(payload)
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"holds {type(content).__name__}, not an object")
    return content


def turns_of(content: dict[str, Any]) -> list[tuple[str, str]]:
    """(question, answer) pairs of a stored conversation, without ``<image>``.

    Raises:
        ValueError: it is not a conversation.
    """
    try:
        values = [turn["value"].replace("<image>", "").strip() for turn in content["conversations"]]
        pairs = list(zip(values[::2], values[1::2], strict=True))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"no conversation of questions and answers ({type(error).__name__}: {error})") from error
    if not pairs:
        raise ValueError("no conversation of questions and answers (it is empty)")
    return pairs


def captions_of(content: dict[str, Any]) -> list[str]:
    """Captions of a stored picture, at least one.

    Raises:
        ValueError: they are not a list of texts, or one is empty.
    """
    captions = content.get("captions")
    if captions in (None, []):
        raise ValueError("has no captions")
    if not isinstance(captions, list) or not all(isinstance(each, str) and each.strip() for each in captions):
        raise ValueError("has captions that are not a list of non-empty texts")
    return captions


def codes_of(payload: bytes) -> NDArray[np.uint16]:
    """VQ codes of a ``.vq`` payload.

    Raises:
        ValueError: its length is not a whole number of codes.
    """
    if not payload or len(payload) % 2:
        raise ValueError(f"has {len(payload)} bytes; each code has two")
    return np.frombuffer(payload, "<u2")
