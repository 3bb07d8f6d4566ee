"""VQAv2: open answers, each compared with those of ten people, scored like the official ``vqaEval.py``."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, get_args

from modules.metrics.vqa_answers import official_form, without_breaks

AnswerType = Literal["yes/no", "number", "other"]
ANSWER_TYPES: tuple[AnswerType, ...] = get_args(AnswerType)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer to one question, and people's answers."""

    text: str
    """As written in a results file: `modules.metrics.vqa_answers.evalai_form` of the model's answer."""
    humans: Sequence[str]
    answer_type: str
    question_type: str


def accuracy(text: str, humans: Sequence[str], *, unanimous_skip: bool = True) -> float:
    """The mean, over the people left out in turn, of min(1, equal answers among the others / 3).

    ``unanimous_skip`` is a quirk of the official script: if all people wrote the same, neither side is normalised, so
    "Yes" is wrong if ten people wrote "yes".

    Raises:
        ValueError: nobody answered.
    """
    if not humans:
        raise ValueError("a VQAv2 question without people's answers cannot be scored; read it with its annotations")
    prediction, given = without_breaks(text), [without_breaks(human) for human in humans]
    if len(set(given)) > 1 or not unanimous_skip:
        prediction, given = official_form(prediction), [official_form(human) for human in given]
    equal, people = given.count(prediction), len(given)
    # if the person left out agrees, one fewer of the others agrees
    return ((people - equal) * min(1.0, equal / 3) + equal * min(1.0, (equal - 1) / 3)) / people


def score(answers: Iterable[Answer], *, unanimous_skip: bool = True) -> dict[str, float]:
    """Mean accuracy as a fraction: ``overall``, ``yes_no``, ``number``, ``other``, ``question_type/<type>``.

    A type without a question is left out.

    Raises:
        ValueError: there is no answer, one has no people's answers, or an answer type is unknown.
    """
    return {name: sum(values) / len(values) for name, values in _accuracies(list(answers), unanimous_skip).items()}


def standard_errors(answers: Iterable[Answer], *, unanimous_skip: bool = True) -> dict[str, float]:
    """Standard error of each metric of `score`: the standard deviation of the questions' accuracies, divided by the
    square root of their number.

    Questions on the same picture are treated as independent, although they are not.
    """
    errors = {}
    for name, values in _accuracies(list(answers), unanimous_skip).items():
        mean = sum(values) / len(values)
        errors[name] = sqrt(sum((value - mean) ** 2 for value in values)) / len(values)
    return errors


def counts(answers: Iterable[Answer]) -> dict[str, int]:
    """Number of questions behind each metric of `score`."""
    return {name: len(members) for name, members in _subsets(list(answers)).items()}


def baseline(answers: Iterable[Answer], *, unanimous_skip: bool = True) -> dict[str, float]:
    """The score of one fixed answer: for each type people's most frequent answer; also ``overall_always_yes``."""
    answers = list(answers)

    def always(text: str, members: Sequence[int]) -> float:
        return sum(accuracy(text, answers[i].humans, unanimous_skip=unanimous_skip) for i in members) / len(members)

    scores = {}
    for name, members in _subsets(answers).items():
        [(text, _)] = Counter(human for i in members for human in answers[i].humans).most_common(1)
        scores[name] = always(text, members)
    return scores | {"overall_always_yes": always("yes", range(len(answers)))}


def submission(predictions: Mapping[int, str], question_ids: Sequence[int]) -> list[dict[str, Any]]:
    """A results file for EvalAI: an entry for each of ``question_ids``, with "" for questions that were not asked.

    Raises:
        ValueError: ``question_ids`` repeats an id, or one that was asked is missing.
    """
    if len(set(question_ids)) != len(question_ids):
        [(repeated, times)] = Counter(question_ids).most_common(1)
        raise ValueError(f"the questions of the submission repeat id {repeated} ({times} times); ids must be unique")
    unknown = sorted(predictions.keys() - set(question_ids))
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(predictions)} answered questions are not among the submission's "
            f"{len(question_ids)}, first {unknown[0]}; name the question file that the submission is for"
        )
    return [{"question_id": key, "answer": predictions.get(key, "")} for key in question_ids]


def _accuracies(answers: Sequence[Answer], unanimous_skip: bool) -> dict[str, list[float]]:
    """Name of each metric to the accuracies it is the mean of."""
    values = [accuracy(answer.text, answer.humans, unanimous_skip=unanimous_skip) for answer in answers]
    return {name: [values[i] for i in members] for name, members in _subsets(answers).items()}


def _subsets(answers: Sequence[Answer]) -> dict[str, list[int]]:
    """Name of each metric to the indices of the answers it is computed over."""
    if not answers:
        raise ValueError("no VQAv2 answers to score; the benchmark file or the limit leaves no question")
    subsets: dict[str, list[int]] = {"overall": list(range(len(answers)))}
    for i, answer in enumerate(answers):
        if answer.answer_type not in ANSWER_TYPES:
            raise ValueError(f"VQAv2 answer type {answer.answer_type!r} must be one of {', '.join(ANSWER_TYPES)}")
        kind = answer.question_type.replace(" ", "_")
        for name in (answer.answer_type.replace("/", "_"), f"question_type/{kind}"):
            subsets.setdefault(name, []).append(i)
    return subsets
