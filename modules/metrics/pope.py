"""POPE: is an object in the picture, yes or no. Scored like LLaVA's ``eval_pope.py``, which papers use."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

YesNo = Literal["yes", "no"]
Counts = NDArray[np.int64]
"""(..., 5): true positives, false positives, true negatives, false negatives, unparsed; "yes" is positive."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer to one question, and the right one."""

    split: str
    image: str
    text: str
    label: YesNo


def parse(text: str, *, strip: bool = True) -> YesNo:
    """Parse like the official code: no if the first sentence has the word No, no or not; anything else is yes.

    ``strip=False`` turns off our only addition, which strips white space from both ends first.
    """
    if strip:
        text = text.strip()
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def is_unparsed(text: str) -> bool:
    """Whether the first word is neither yes nor no, so the answer may come only from the default."""
    words = text.split()
    return not words or words[0].strip(".,!?;:'\"").lower() not in ("yes", "no")


def score(answers: Iterable[Answer]) -> dict[str, float]:
    """All metrics of a set of answers, as fractions; 0/0 counts as 0.

    ``<split>/{accuracy,precision,recall,f1,yes_ratio,unparsed_ratio}`` for each split. Over all splits: ``f1_macro``
    and ``acc_macro`` (means of the splits), ``f1_pooled``, ``yes_ratio`` and ``unparsed_ratio`` (all questions
    together), and ``f1_random`` if there is a split named random.

    Raises:
        ValueError: there is no answer, or a label is neither yes nor no.
    """
    splits, _, counts = _count(answers)
    names, values = _measures(splits, counts.sum(axis=0))
    return dict(zip(names, values.tolist(), strict=True))


def standard_errors(answers: Iterable[Answer], *, resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """Standard error of each metric of `score`, from a bootstrap over images.

    Whole images are drawn, because questions on one image are not independent, and the splits share images and
    positives. The same answers and seed give the same errors.
    """
    splits, images, counts = _count(answers)
    draws = np.random.Generator(np.random.PCG64(seed)).integers(0, len(images), size=(resamples, len(images)))
    weights = np.stack([np.bincount(draw, minlength=len(images)) for draw in draws])
    names, values = _measures(splits, np.einsum("ri,isc->rsc", weights, counts))
    return dict(zip(names, values.std(axis=1).tolist(), strict=True))


def counts(answers: Iterable[Answer], scores: Iterable[str]) -> dict[str, int]:
    """Number of questions behind each of ``scores``, the names that `score` gives for the same answers."""
    answers = list(answers)
    splits = Counter(answer.split for answer in answers)
    splits["f1_random"] = splits["random"]
    return {name: splits.get(name.partition("/")[0], len(answers)) for name in scores}


def baseline(answers: Iterable[Answer]) -> dict[str, float]:
    """The score of always saying yes on the same labels."""
    return score(replace(answer, text="Yes") for answer in answers)


def _count(answers: Iterable[Answer]) -> tuple[list[str], list[str], Counts]:
    """Splits S in order of appearance, images I, counts (I, S, 5)."""
    answers = list(answers)
    if not answers:
        raise ValueError("no POPE answers to score; the benchmark file or the limit leaves no question")
    splits = list(dict.fromkeys(answer.split for answer in answers))
    images = list(dict.fromkeys(answer.image for answer in answers))
    row, column = {name: i for i, name in enumerate(images)}, {name: i for i, name in enumerate(splits)}
    kinds = {("yes", "yes"): 0, ("yes", "no"): 1, ("no", "no"): 2, ("no", "yes"): 3}
    counts = np.zeros((len(images), len(splits), 5), dtype=np.int64)
    for answer in answers:
        if answer.label not in ("yes", "no"):
            raise ValueError(f"POPE label {answer.label!r} of {answer.image} ({answer.split}) must be yes or no")
        cell = counts[row[answer.image], column[answer.split]]
        cell[kinds[parse(answer.text), answer.label]] += 1
        cell[4] += is_unparsed(answer.text)
    return splits, images, counts


def _measures(splits: Sequence[str], counts: Counts) -> tuple[list[str], NDArray[np.float64]]:
    """Names, and one row of values per name: counts (..., S, 5) to (names, ...)."""
    per_split, pooled = _ratios(counts), _ratios(counts.sum(axis=-2))
    table = {f"{split}/{name}": value[..., i] for i, split in enumerate(splits) for name, value in per_split.items()}
    table["f1_macro"], table["acc_macro"] = per_split["f1"].mean(axis=-1), per_split["accuracy"].mean(axis=-1)
    table["f1_pooled"] = pooled["f1"]
    if "random" in splits:
        table["f1_random"] = table["random/f1"]
    table["yes_ratio"], table["unparsed_ratio"] = pooled["yes_ratio"], pooled["unparsed_ratio"]
    return list(table), np.stack(list(table.values()))


def _ratios(counts: Counts) -> dict[str, NDArray[np.float64]]:
    tp, fp, tn, fn, unparsed = np.moveaxis(counts.astype(np.float64), -1, 0)
    total = tp + fp + tn + fn
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return {
        "accuracy": _ratio(tp + tn, total),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(tp + fp, total),
        "unparsed_ratio": _ratio(unparsed, total),
    }


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole != 0)
