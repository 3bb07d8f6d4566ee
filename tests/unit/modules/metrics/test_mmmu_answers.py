"""Expected values: the official script's outputs, as recorded in the evaluation specification."""

import pytest

from modules.metrics.mmmu_answers import matches_open, read_choice, read_open

OPTIONS = ("apple pie", "banana split", "cherry cake", "date")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("(C)", "C"),
        ("The answer is (D).", "D"),
        ("A or B", "B"),
        ("A, because B is wrong", "B"),
        ("Answer: C", "C"),
        ("b", None),
        ("D)", None),
        ("**B**", None),
        ("apple pie", None),
        ("", None),
        ("It looks very much like a Banana Split.", "B"),
        ("I first saw cherry cake, then apple pie", "A"),
        ("(B) and then B or A", "B"),
        ("E", None),
    ],
)
def test_choices(text: str, letter: str | None) -> None:
    assert read_choice(text, OPTIONS) == letter


def test_up_to_nine_options() -> None:
    assert read_choice("I", [str(i) for i in range(9)]) == "I"


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("5", "5 apples", True),
        ("3", "3.001", True),
        ("0.5", ".5", False),
        ("2", "-2", False),
        ("C", "the c chord", True),
        ("a", "A", True),
        ("b", "A", False),
        ("1200", "1,200 units", True),
        ("0.0015", "1.5e-3", True),
        ("Violet", "The colour is violet.", True),
        ("ten", "10", False),
        ("6", "x = 2 so y = 6", True),
        ("2", "x = 2 so y = 6", False),
    ],
)
def test_open_answers(gold: str, text: str, right: bool) -> None:
    assert matches_open(text, [gold]) == right


def test_any_of_several_right_answers_counts() -> None:
    assert matches_open("24/7", ["3.429", "24/7"])
    assert matches_open("3.43", ["3.429", "24/7"])
    assert not matches_open("24", ["3.429", "24/7"])


def test_what_is_read_out_of_a_free_answer() -> None:
    # the rest of 1,000 behind its comma is a number, too
    assert read_open("Therefore the final answer is 4.\nIt is 1,000 or less") == {4.0, "1,000 or less", 1000.0, 0.0}
    assert read_open("Red.") == {"red"}
    assert read_open("x") == {" x", "x "}
    # an end that is a single sign says nothing, so all of it counts
    assert read_open("The answer is :") == {"the answer is :"}
