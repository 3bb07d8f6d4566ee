"""MMMU: college questions in thirty subjects, multiple choice and open, scored like the official script."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from modules.metrics.mmmu_answers import LETTERS, matches_open, read_choice

DOMAINS = {
    "Art_and_Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health_and_Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities_and_Social_Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech_and_Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
SUBJECTS = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
"""Subject to domain."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer to one question, and the right ones."""

    question_id: str
    subject: str
    text: str
    golds: Sequence[str]
    """Right answers: a letter, or one or more phrases and numbers for an open question."""
    options: Sequence[str] = ()
    """Empty for an open question."""


def guess(question_id: str, options: Sequence[str], seed: int) -> str:
    """A random letter. It depends only on seed and question."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:{question_id}".encode()).digest())
    return random.Random(number).choice(LETTERS[: len(options)])


def needs_guess(answer: Answer) -> bool:
    """Whether no letter can be parsed from the answer to a multiple-choice question."""
    return bool(answer.options) and read_choice(answer.text, answer.options) is None


def is_correct(answer: Answer, *, seed: int = 0) -> bool:
    """Whether the answer is right by the official rule. If no letter can be parsed, a guess decides."""
    if not answer.options:
        return matches_open(answer.text, answer.golds)
    letter = read_choice(answer.text, answer.options) or guess(answer.question_id, answer.options, seed)
    return letter in answer.golds


def score(answers: Iterable[Answer], *, seed: int = 0) -> dict[str, float]:
    """Fractions of right answers, and ``n_fallback``, the number of answers from which no letter could be parsed.

    ``overall`` uses a guess for those, like the official script; so do ``multiple_choice``, ``open``,
    ``domain/<name>`` and ``subject/<name>``. ``overall_strict`` counts them as wrong. A metric without any question is
    left out.

    Raises:
        ValueError: there is no answer, a question has no right answer or more options than letters, or a subject is
            not one of the thirty.
    """
    answers = list(answers)
    scores = {
        name: sum(is_correct(answer, seed=seed) for answer in members) / len(members)
        for name, members in _subsets(answers).items()
    }
    guessed = [needs_guess(answer) for answer in answers]
    right = sum(is_correct(answer) and not was_guess for answer, was_guess in zip(answers, guessed, strict=True))
    return scores | {"overall_strict": right / len(answers), "n_fallback": sum(guessed)}


def standard_errors(answers: Iterable[Answer], scores: dict[str, float]) -> dict[str, float]:
    """Binomial standard error of each fraction in ``scores``, the result of `score` on the same answers."""
    fractions = {name: size for name, size in counts(answers).items() if name != "n_fallback"}
    return {name: sqrt(scores[name] * (1 - scores[name]) / size) for name, size in fractions.items()}


def counts(answers: Iterable[Answer]) -> dict[str, int]:
    """Number of questions behind each metric of `score`; only a multiple-choice question can need a guess."""
    sizes = {name: len(members) for name, members in _subsets(answers).items()}
    return sizes | {"overall_strict": sizes["overall"], "n_fallback": sizes.get("multiple_choice", 0)}


def baseline(answers: Iterable[Answer]) -> dict[str, float]:
    """The score of always saying A on the same questions."""
    return score(replace(answer, text="A") for answer in answers)


def _subsets(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """Name of each accuracy to the answers it is computed over."""
    answers = list(answers)
    if not answers:
        raise ValueError("no MMMU answers to score; the benchmark files or the limit leave no question")
    subsets: dict[str, list[Answer]] = {"overall": answers}
    for answer in answers:
        if answer.subject not in SUBJECTS:
            raise ValueError(
                f"MMMU subject {answer.subject!r} of {answer.question_id} must be one of {', '.join(SUBJECTS)}"
            )
        if not answer.golds or len(answer.options) > len(LETTERS):
            raise ValueError(
                f"MMMU question {answer.question_id} has {len(answer.golds)} right answers and {len(answer.options)} "
                f"options; it must have at least one right answer and at most {len(LETTERS)} options"
            )
        kind = "multiple_choice" if answer.options else "open"
        for name in (kind, f"domain/{SUBJECTS[answer.subject]}", f"subject/{answer.subject}"):
            subsets.setdefault(name, []).append(answer)
    return subsets
