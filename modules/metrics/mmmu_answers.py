"""How MMMU parses an answer: a letter from a sentence, or numbers and phrases from an open answer.

These are the rules of the official ``eval_utils.py``, with one exception: if it guesses a letter, `read_choice` returns
None.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

LETTERS = "ABCDEFGHI"
_SIGNS = (",", ".", "!", "?", ";", ":", "'")
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
"""With commas, scientific, plain."""


def read_choice(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that ``text`` chooses; None if the official script would guess.

    Letters in brackets are looked for first, then letters that stand alone. If the answer has more than five words, the
    text of an option counts last. If there are several matches, the last one counts.
    """
    for sign in _SIGNS:
        text = text.strip(sign)
    text = f" {text} "
    letters = LETTERS[: len(options)]
    found = _last(text, {letter: f"({letter})" for letter in letters})
    found = found or _last(text, {letter: f" {letter} " for letter in letters})
    if found is None and len(text.split()) > 5:
        words = {letter: option.lower() for letter, option in zip(letters, options, strict=True)}
        found = _last(text.lower(), words)
    return found


def matches_open(text: str, golds: Iterable[str]) -> bool:
    """Whether an open answer contains one of ``golds``: as part of a phrase, or as an equal number (two decimals)."""
    wanted = [form for gold in golds for form in _forms(gold)]
    phrases = [form for form in wanted if isinstance(form, str)]
    for found in read_open(text):
        if found in wanted if isinstance(found, float) else any(phrase in found for phrase in phrases):
            return True
    return False


def read_open(text: str) -> set[str | float]:
    """The phrases and numbers that an open answer may mean: the ends of lines, after words that announce a result.

    Without such words, the whole text is used. Phrases are in lower case; numbers are rounded to two decimals.
    """
    lines = text.strip().strip(".").lower().split("\n")
    tails = [_tail(line, (*_LEADS, "=") if line_is_last else _LEADS) for line, line_is_last in _with_last(lines)]
    phrases = [tail for tail in tails if tail and tail not in _SIGNS] or ["\n".join(lines)]
    numbers = [number for phrase in phrases for pattern in _NUMBERS for number in re.findall(pattern, phrase)]
    return {form for found in phrases + numbers for form in _forms(found)}


def _last(text: str, marks: Mapping[str, str]) -> str | None:
    """The letter whose mark is last in ``text``; None if there is none."""
    places = {letter: text.rfind(mark) for letter, mark in marks.items()}
    last = max(places, key=places.__getitem__, default=None)
    return last if last is not None and places[last] >= 0 else None


def _with_last(lines: Sequence[str]) -> list[tuple[str, bool]]:
    return [(line, number == len(lines)) for number, line in enumerate(lines, start=1)]


def _tail(line: str, leads: Iterable[str]) -> str:
    """The shortest end of ``line`` after one of ``leads``; empty if there is none."""
    shortest = ""
    for lead in leads:
        if lead in line:
            tail = line.rpartition(lead)[2].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _forms(text: str) -> list[str | float]:
    """The forms that are compared: a number, or a phrase. A single character needs a space on one side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
