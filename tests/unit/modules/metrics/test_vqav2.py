"""Expected values: the official script's outputs, as recorded in the evaluation specification."""

from math import sqrt

import pytest

from modules.metrics.vqa_answers import evalai_form
from modules.metrics.vqav2 import Answer, accuracy, baseline, score, standard_errors, submission

SKATER = ["down", "down", "at table", "skateboard", "down", "table", "down", "down", "down", "down"]
"""The ten answers of question 262148000."""


@pytest.mark.parametrize(("equal", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (9, 1), (10, 1)])
def test_leave_one_out(equal: int, expected: float) -> None:
    humans = ["red"] * equal + [f"other {i}" for i in range(10 - equal)]
    assert accuracy("red", humans) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "humans", "expected"),
    [
        ("down", SKATER, 1),
        ("Down.", SKATER, 1),
        ("table", SKATER, 0.3),
        ("at table", SKATER, 0.3),
        ("table", ["down"] * 6 + ["table"] * 2 + ["at table", "skateboard"], 0.6),
        ("two", ["2"] * 8 + ["3"] * 2, 1),
        ("dont know", ["don't know"] * 2 + ["unknown"] * 8, 0.6),
        ("1000", ["1,000"] * 3 + ["1000"] * 7, 1),
        ("", ["a"] * 5 + ["b"] * 5, 1),
    ],
)
def test_known_answers(text: str, humans: list[str], expected: float) -> None:
    assert accuracy(text, humans) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["Yes", "yes."])
def test_unanimous_people_are_not_normalised_unless_the_switch_is_off(text: str) -> None:
    assert accuracy(text, ["yes"] * 10) == 0
    assert accuracy(text, ["yes"] * 9 + ["no"]) == 1
    assert accuracy(text, ["yes"] * 10, unanimous_skip=False) == 1
    assert accuracy(evalai_form(text), ["yes"] * 10) == 1


def test_unanimous_is_decided_without_line_breaks() -> None:
    assert accuracy("red car", ["red car"] * 9 + [" red\tcar\n"]) == 1
    assert accuracy("Red car", ["red car"] * 9 + [" red\tcar\n"]) == 0


def answer(text: str, *humans: str, answer_type: str = "other", question_type: str = "what is the") -> Answer:
    return Answer(text=text, humans=humans, answer_type=answer_type, question_type=question_type)


MIXED = [
    answer("yes", *["yes"] * 10, answer_type="yes/no", question_type="is the"),
    answer("no", *["yes"] * 10, answer_type="yes/no", question_type="is the"),
    answer("2", *["2"] * 2 + ["3"] * 8, answer_type="number", question_type="how many"),
    answer("down", *SKATER, question_type="none of the above"),
    answer("Table", *["table"] * 10, question_type="none of the above"),
]


def test_scores_by_type() -> None:
    assert score(MIXED) == {
        "overall": pytest.approx((1 + 0 + 0.6 + 1 + 0) / 5),
        "yes_no": 0.5,
        "number": pytest.approx(0.6),
        "other": 0.5,
        "question_type/is_the": 0.5,
        "question_type/how_many": pytest.approx(0.6),
        "question_type/none_of_the_above": 0.5,
    }
    assert score(MIXED, unanimous_skip=False)["other"] == 1


def test_standard_errors() -> None:
    errors = standard_errors(MIXED)
    assert errors["yes_no"] == pytest.approx(sqrt(0.25 / 2))
    assert errors["number"] == 0
    spread = (1 - 0.52) ** 2 * 2 + 0.52**2 * 2 + (0.6 - 0.52) ** 2
    assert errors["overall"] == pytest.approx(sqrt(spread / 5 / 5))
    assert standard_errors(MIXED, unanimous_skip=False)["other"] == 0


@pytest.mark.parametrize(("n", "most"), [(1024, 0.013), (16_384, 0.0033)])
def test_standard_errors_of_a_part(n: int, most: float) -> None:
    """At most, for answers that are right or wrong; 77 % are right."""
    some = [answer("yes" if i % 100 < 77 else "no", *["yes"] * 10, answer_type="yes/no") for i in range(n)]
    assert standard_errors(some)["overall"] == pytest.approx(most, rel=0.02)


def test_baselines_give_each_type_its_most_frequent_answer() -> None:
    scores = baseline(MIXED)
    assert scores["overall"] == scores["overall_always_yes"] == 2 / 5
    assert scores["yes_no"] == 1
    assert scores["number"] == 1  # 3
    assert scores["other"] == pytest.approx((0.3 + 1) / 2)  # table, which is said eleven times
    assert scores["question_type/how_many"] == 1


def test_submission_holds_every_question_once() -> None:
    assert submission({3: "red", 1: "2"}, [1, 2, 3]) == [
        {"question_id": 1, "answer": "2"},
        {"question_id": 2, "answer": ""},
        {"question_id": 3, "answer": "red"},
    ]
    with pytest.raises(ValueError, match=r"1 of 2 answered questions are not among the submission's 1, first 2"):
        submission({1: "a", 2: "b"}, [1])
    with pytest.raises(ValueError, match=r"repeat id 7 \(2 times\)"):
        submission({}, [6, 7, 7])


def test_errors() -> None:
    with pytest.raises(ValueError, match="no VQAv2 answers to score"):
        score([])
    with pytest.raises(ValueError, match=r"answer type 'colour' must be one of yes/no, number, other"):
        score([answer("red", "red", answer_type="colour")])
    with pytest.raises(ValueError, match=r"a VQAv2 question without people's answers"):
        score([answer("red")])
