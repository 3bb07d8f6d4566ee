"""GQA: short answers to compositional questions, scored like the official ``eval.py``.

A question is an entry of the official file: ``question, answer, semantic, types, groups, isBalanced``, and for
consistency ``entailed``.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import Any

Questions = Mapping[str, Mapping[str, Any]]
Choices = Mapping[str, Mapping[str, Sequence[str]]]
"""Question id to its ``valid`` and ``plausible`` answers."""
_COMMON = ("color", "material", "shape")
"""Allowed answers to a question about what things have in common."""
_NOT_A_STEP = ("exist", "query: name", "choose name")


def normalise(prediction: str) -> str:
    """An answer in the form used for comparison (LLaVA's): stripped, without final full stops, in lower case."""
    return prediction.strip().rstrip(".").lower()


def score(questions: Questions, predictions: Mapping[str, str], choices: Choices | None = None) -> dict[str, float]:
    """Metrics over the balanced questions, as fractions. ``predictions`` (question id to raw answer) are normalised.

    ``accuracy``; ``binary`` and ``open`` (structural type "query"); ``structural/<type>``, ``semantic/<type>``,
    ``steps/<n>``, ``words/<n>``; ``distribution``, the official distance between predicted and true answers inside
    global groups, lower is better. With ``choices``, which were not released for testdev, also ``validity`` and
    ``plausibility``.

    ``consistency`` is the share of right answers among the questions that a correctly answered question entails. If
    some of them were not asked (most are missing in the balanced files), it is computed over the others and named
    ``consistency_balanced_subset``. A metric without any question is left out.

    Raises:
        ValueError: there is no balanced question, or questions have no prediction or no choices.
    """
    balanced = _balanced(questions)
    missing = [key for key in balanced if key not in predictions]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(balanced)} GQA questions have no prediction, first {missing[0]}; generate them"
        )
    answers = {key: normalise(predictions[key]) for key in questions if key in predictions}
    scores = {
        name: sum(answers[key] == balanced[key]["answer"] for key in keys) / len(keys)
        for name, keys in _subsets(balanced).items()
    }
    consistency, shares = _consistency(questions, balanced, answers)
    if shares:
        scores[consistency] = sum(shares) / len(shares)
    if choices is not None:
        scores |= _allowed(balanced, answers, choices)
    distance = _distribution(balanced, answers)
    return scores if distance is None else scores | {"distribution": distance}


def standard_errors(questions: Questions, scores: Mapping[str, float]) -> dict[str, float]:
    """Binomial standard error of each accuracy in ``scores``."""
    balanced = _balanced(questions)
    subsets = _subsets(balanced) | {name: list(balanced) for name in ("validity", "plausibility")}
    return {name: sqrt(p * (1 - p) / len(subsets[name])) for name, p in scores.items() if name in subsets}


def counts(questions: Questions, predictions: Mapping[str, str], scores: Iterable[str]) -> dict[str, int]:
    """Number of questions behind each of ``scores``, the names that `score` gives for the same questions.

    For consistency, it is the number of correctly answered questions that entail others.
    """
    balanced = _balanced(questions)
    answers = {key: normalise(predictions[key]) for key in questions if key in predictions}
    consistency, shares = _consistency(questions, balanced, answers)
    sizes = {name: len(keys) for name, keys in _subsets(balanced).items()} | {consistency: len(shares)}
    sizes["validity"] = sizes["plausibility"] = len(balanced)
    sizes["distribution"] = sum(question["groups"]["global"] is not None for question in balanced.values())
    return {name: sizes[name] for name in scores}


def baseline(questions: Questions) -> dict[str, float]:
    """The score of one fixed answer: for each subset its most frequent answer; also ``accuracy_always_yes``."""
    balanced = _balanced(questions)
    answers = {name: [balanced[key]["answer"] for key in keys] for name, keys in _subsets(balanced).items()}
    scores = {name: max(Counter(given).values()) / len(given) for name, given in answers.items()}
    return scores | {"accuracy_always_yes": answers["accuracy"].count("yes") / len(balanced)}


def steps(question: Mapping[str, Any]) -> int:
    """Number of reasoning steps, as the official script counts them."""
    operations = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
    return sum(not any(name in operation for name in _NOT_A_STEP) for operation in operations)


def _balanced(questions: Questions) -> dict[str, Mapping[str, Any]]:
    balanced = {key: question for key, question in questions.items() if question["isBalanced"]}
    if not balanced:
        raise ValueError("no balanced GQA question to score; use a *_balanced_questions.json file")
    return balanced


def _subsets(balanced: Questions) -> dict[str, list[str]]:
    """Name of each accuracy to the questions it is computed over."""
    names: list[Callable[[Mapping[str, Any]], str]] = [
        lambda question: "accuracy",
        lambda question: "open" if question["types"]["structural"] == "query" else "binary",
        lambda question: f"structural/{question['types']['structural']}",
        lambda question: f"semantic/{question['types']['semantic']}",
        lambda question: f"steps/{steps(question)}",
        lambda question: f"words/{len(question['question'].split())}",
    ]
    subsets: dict[str, list[str]] = {}
    for name in names:
        for key, question in balanced.items():
            subsets.setdefault(name(question), []).append(key)
    return subsets


def _consistency(questions: Questions, balanced: Questions, answers: Mapping[str, str]) -> tuple[str, list[float]]:
    """The name of the consistency, which says whether all entailed questions were asked, and the shares it averages."""
    entailed = {key: [one for one in balanced[key].get("entailed", ()) if one != key] for key in balanced}
    asked = {key: [one for one in others if one in answers] for key, others in entailed.items()}
    shares = [
        sum(answers[one] == questions[one]["answer"] for one in others) / len(others)
        for key, others in asked.items()
        if others and answers[key] == balanced[key]["answer"]
    ]
    return "consistency" if asked == entailed else "consistency_balanced_subset", shares


def _allowed(balanced: Questions, answers: Mapping[str, str], choices: Choices) -> dict[str, float]:
    """Fractions of answers that make sense for the question (valid) and for the world (plausible)."""
    missing = [key for key in balanced if key not in choices]
    if missing:
        raise ValueError(f"{len(missing)} of {len(balanced)} GQA questions have no choices, first {missing[0]}")

    def share(kind: str) -> float:
        allowed = {
            key: _COMMON if "Common" in question["types"]["detailed"] else choices[key][kind]
            for key, question in balanced.items()
        }
        return sum(answers[key] in allowed[key] for key in balanced) / len(balanced)

    return {"validity": share("valid"), "plausibility": share("plausible")}


def _distribution(balanced: Questions, answers: Mapping[str, str]) -> float | None:
    """Chi-square of each global group, weighted by its size, divided by 100; None without such groups."""
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for key, question in balanced.items():
        group = question["groups"]["global"]
        if group is not None:
            gold[group][question["answer"]] += 1
            given[group][answers[key]] += 1
    if not gold:
        return None
    # like the official script, this does not count answers that are never right in a group
    chi = {name: sum((given[name][a] - e) ** 2 / e for a, e in expected.items()) for name, expected in gold.items()}
    sizes = {name: expected.total() for name, expected in gold.items()}
    return sum(chi[name] * sizes[name] for name in gold) / sum(sizes.values()) / 100
