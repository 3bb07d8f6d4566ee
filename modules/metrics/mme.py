"""MME: two yes/no questions on each picture, in fourteen categories, scored like the official ``calculation.py``."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

YesNo = Literal["yes", "no"]
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TOTALS = {"perception": PERCEPTION, "cognition": COGNITION}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer to one of the two questions on a picture, and the right one."""

    category: str
    image: str
    text: str
    label: YesNo


def parse(text: str) -> Literal["yes", "no", "other"]:
    """Parse like the official code: yes or no in the first four characters, yes first; "Not sure" is a no."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(answers: Iterable[Answer]) -> dict[str, float]:
    """``<category>/{acc,acc_plus,score}`` of each category, ``perception`` and ``cognition``, ``n_other``.

    ``acc`` is the fraction of right answers, ``acc_plus`` of pictures with both right, ``score`` 100 times their sum. A
    total is the sum of its categories' scores, at most 2000 and 800. It is left out if a category is missing.
    ``n_other`` is the number of answers that are neither yes nor no; they count as wrong.

    Raises:
        ValueError: there is no answer, a label is neither yes nor no, or a picture does not have two answers.
    """
    answers = list(answers)
    scores: dict[str, float] = {}
    for category, measures in _per_image(answers).items():
        scores |= {f"{category}/{name}": float(values.mean()) for name, values in measures.items()}
    for total, categories in TOTALS.items():
        if all(f"{category}/score" in scores for category in categories):
            scores[total] = sum(scores[f"{category}/score"] for category in categories)
    return scores | {"n_other": sum(parse(answer.text) == "other" for answer in answers)}


def standard_errors(answers: Iterable[Answer]) -> dict[str, float]:
    """Standard errors of `score`'s metrics. Pictures are independent; the two questions on one picture are not."""
    errors: dict[str, float] = {}
    for category, measures in _per_image(answers).items():
        errors |= {f"{category}/{name}": float(values.std() / len(values) ** 0.5) for name, values in measures.items()}
    for total, categories in TOTALS.items():
        if all(f"{category}/score" in errors for category in categories):
            errors[total] = sum(errors[f"{category}/score"] ** 2 for category in categories) ** 0.5
    return errors


def counts(answers: Iterable[Answer], scores: Iterable[str]) -> dict[str, int]:
    """Number of questions behind each of ``scores``, the names that `score` gives; for ``acc_plus``, of pictures."""
    sizes = dict(Counter(answer.category for answer in answers))
    sizes |= {total: sum(sizes.get(category, 0) for category in categories) for total, categories in TOTALS.items()}
    sizes["n_other"] = sizes["perception"] + sizes["cognition"]
    return {name: sizes[name.partition("/")[0]] // (2 if name.endswith("/acc_plus") else 1) for name in scores}


def baseline(answers: Iterable[Answer]) -> dict[str, float]:
    """The score of always saying yes on the same labels: 50 out of 200 in each category."""
    return score(replace(answer, text="Yes") for answer in answers)


def _per_image(answers: Iterable[Answer]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Category to metric to its value for each picture (N,); the metric is the mean."""
    right: dict[str, dict[str, list[bool]]] = {}
    for answer in answers:
        if answer.label not in ("yes", "no"):
            raise ValueError(f"MME label {answer.label!r} of {answer.image} ({answer.category}) must be yes or no")
        correct = parse(answer.text) == answer.label
        right.setdefault(answer.category, {}).setdefault(answer.image, []).append(correct)
    if not right:
        raise ValueError("no MME answers to score; the benchmark folder or the limit leaves no question")
    found = {}
    for category, images in right.items():
        for image, pair in images.items():
            if len(pair) != 2:
                raise ValueError(f"MME picture {image} ({category}) has {len(pair)} answers; it must have two")
        pairs = np.array(list(images.values()), dtype=np.float64)
        acc, acc_plus = pairs.mean(axis=1), pairs.min(axis=1)
        found[category] = {"acc": acc, "acc_plus": acc_plus, "score": 100 * (acc + acc_plus)}
    return found
