"""Stored payloads are read as they were meant, or refused with the reason."""

import numpy as np
import pytest

from datamodules.stored import captions_of, codes_of, content_of, turns_of


def talk(*values: object) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": value} for value in values]}


def test_what_is_stored_comes_back() -> None:
    assert content_of('{"captions": ["Grüße 犬"]}'.encode()) == {"captions": ["Grüße 犬"]}
    assert turns_of(talk("<image>\nWhere?", " There. ", "Why?", "So.")) == [("Where?", "There."), ("Why?", "So.")]
    assert captions_of({"captions": ["a", "b"]}) == ["a", "b"]
    assert codes_of(np.array([1, 65535], "<u2").tobytes()).tolist() == [1, 65535]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"{", r"is not JSON \(JSONDecodeError"),
        (b"\xff", r"is not JSON \(UnicodeDecodeError"),
        (b"[" * 100_000, r"is not JSON \(RecursionError"),
        (b'{"n": 1' + b"0" * 5000 + b"}", r"is not JSON \(ValueError"),
        (b'{"captions": ["\\ud800"]}', r"is not JSON \(UnicodeEncodeError"),
        (b"[]", "holds list, not an object"),
        (b"null", "holds NoneType, not an object"),
    ],
)
def test_what_is_no_object_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        content_of(payload)


@pytest.mark.parametrize(
    "content", [{}, talk(), talk("a"), talk("a", 5), {"conversations": 3}, {"conversations": ["a"]}]
)
def test_what_is_no_conversation_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no conversation of questions and answers"):
        turns_of(content)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([], "no captions"),
        (None, "no captions"),
        *((bad, "not a list of non-empty texts") for bad in ("abc", 5, [5], [""], ["a", " "])),
    ],
)
def test_what_are_no_captions_is_refused(captions: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        captions_of({"captions": captions})


@pytest.mark.parametrize("payload", [b"", b"123"])
def test_half_a_code_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=f"has {len(payload)} bytes; each code has two"):
        codes_of(payload)
