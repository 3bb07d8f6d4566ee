"""Expected values of the toy case: the official script's, as recorded in the evaluation specification."""

from math import sqrt
from typing import Any

import pytest

from modules.metrics.gqa import baseline, normalise, score, standard_errors, steps


def question(
    text: str, answer: str, structural: str, group: str | None = None, semantic: str = "obj", balanced: bool = True
) -> dict[str, Any]:
    return {
        "question": text,
        "answer": answer,
        "isBalanced": balanced,
        "types": {"structural": structural, "semantic": semantic, "detailed": "x"},
        "groups": {"global": group, "local": None},
        "semantic": [
            {"operation": "select", "argument": "scene", "dependencies": []},
            {"operation": "query", "argument": "room", "dependencies": [0]},
        ],
    }


TOY = {
    "1": question("Which room is it?", "bedroom", "query", "room"),
    "2": question("Which room is this?", "kitchen", "query", "room"),
    "3": question("Is it indoors?" + " really", "yes", "verify"),
    "4": question("Is it a bed or a chair", "no", "logical"),
}
TOY_ANSWERS = {"1": "bedroom", "2": "bedroom", "3": "no", "4": "no"}


def test_toy() -> None:
    scores = score(TOY, TOY_ANSWERS)
    assert scores["accuracy"] == scores["binary"] == scores["open"] == 0.5
    assert scores["distribution"] == pytest.approx(0.02)
    assert (scores["structural/logical"], scores["structural/query"], scores["structural/verify"]) == (1, 0.5, 0)
    assert scores["steps/2"] == 0.5
    assert scores["words/4"] == pytest.approx(1 / 3)
    assert scores["words/7"] == 1


def test_perfect_predictions() -> None:
    scores = score(TOY, {key: value["answer"] for key, value in TOY.items()})
    assert scores.pop("distribution") == 0
    assert set(scores.values()) == {1.0}


def test_predictions_are_normalised_and_gold_is_not() -> None:
    assert score({"1": TOY["1"]}, {"1": " Bedroom.\n"})["accuracy"] == 1
    assert score({"1": question("Which?", "Bedroom", "query")}, {"1": "Bedroom"})["accuracy"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes.", "yes"), (" traffic light \n", "traffic light"), ("T-shirt", "t-shirt"), ("no...", "no"), ("", "")],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_answers_outside_the_gold_answers_do_not_enter_the_distribution() -> None:
    # only bedroom (0 of 1) and kitchen (0 of 1) count: chi square 2
    assert score(TOY, TOY_ANSWERS | {"1": "attic", "2": "cellar"})["distribution"] == pytest.approx(0.02)


def test_distribution_weighs_groups_by_size() -> None:
    questions = {str(i): question("What?", "red", "query", "colour") for i in range(3)}
    questions |= {"3": question("What?", "round", "query", "shape")}
    # colour: (0-3)^2/3 = 3, weight 3; shape: 0, weight 1
    scores = score(questions, {"0": "blue", "1": "blue", "2": "blue", "3": "round"})
    assert scores["distribution"] == pytest.approx(3 * 3 / 4 / 100)


def entailing(key: str, *others: str) -> dict[str, Any]:
    return TOY[key] | {"entailed": [key, *others]}


def test_consistency_over_what_rightly_answered_questions_entail() -> None:
    more = {"8": question("Is it big?", "yes", "verify", balanced=False)}
    questions = TOY | more | {"1": entailing("1", "3", "4", "8"), "2": entailing("2", "8"), "4": entailing("4", "8")}
    # 1 (right) entails 3 wrong, 4 right, 8 right; 2 is wrong; 4 (right) entails 8 right
    scores = score(questions, TOY_ANSWERS | {"8": "Yes."})
    assert scores["consistency"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["accuracy"] == 0.5
    # what was not asked says nothing
    subset = score(questions, TOY_ANSWERS)
    assert "consistency" not in subset
    assert subset["consistency_balanced_subset"] == 0.5


def test_no_consistency_without_entailed_questions() -> None:
    assert not any(name.startswith("consistency") for name in score(TOY, TOY_ANSWERS))
    assert not any(name.startswith("consistency") for name in score(TOY | {"2": entailing("2", "1")}, TOY_ANSWERS))


def test_validity_and_plausibility_need_choices() -> None:
    assert not {"validity", "plausibility"} & score(TOY, TOY_ANSWERS).keys()
    choices = {key: {"valid": ["bedroom", "yes", "no"], "plausible": ["no"]} for key in TOY}
    scores = score(TOY, TOY_ANSWERS | {"1": "Attic."}, choices)
    assert (scores["validity"], scores["plausibility"]) == (0.75, 0.5)
    assert standard_errors(TOY, scores)["validity"] == pytest.approx(sqrt(0.75 * 0.25 / 4))
    common = question("What is common?", "color", "query") | {
        "types": {"structural": "query", "semantic": "attr", "detailed": "twoCommon"}
    }
    assert score({"1": common}, {"1": "shape"}, {"1": {"valid": [], "plausible": []}})["validity"] == 1
    with pytest.raises(ValueError, match="3 of 4 GQA questions have no choices, first 2"):
        score(TOY, TOY_ANSWERS, {"1": choices["1"]})


def test_only_balanced_questions_count() -> None:
    extra = {"9": question("Is it?", "yes", "verify", balanced=False)}
    assert score(TOY | extra, TOY_ANSWERS) == score(TOY, TOY_ANSWERS)


def test_measures_without_questions_are_left_out() -> None:
    scores = score({"3": TOY["3"]}, {"3": "yes"})
    assert "open" not in scores
    assert "distribution" not in scores


def test_steps_leave_out_existence_and_names() -> None:
    operations = [
        ("select", "cat (12)"),
        ("exist", "?"),
        ("query", "name"),
        ("choose name", "cat|dog"),
        ("relate", "to left"),
    ]
    record = {"semantic": [{"operation": operation, "argument": argument} for operation, argument in operations]}
    assert steps(record) == 2


def test_baselines_answer_each_subset_with_its_most_frequent_answer() -> None:
    scores = baseline(TOY | {"5": question("Is it big?", "yes", "verify")})
    assert scores["accuracy"] == scores["accuracy_always_yes"] == pytest.approx(2 / 5)
    assert scores["binary"] == pytest.approx(2 / 3)
    assert scores["open"] == 0.5


def test_standard_errors() -> None:
    errors = standard_errors(TOY, score(TOY, TOY_ANSWERS))
    assert errors["accuracy"] == pytest.approx(sqrt(0.25 / 4))
    assert errors["open"] == pytest.approx(sqrt(0.25 / 2))
    assert "distribution" not in errors
    whole = {str(i): TOY["3"] for i in range(12_578)}
    assert standard_errors(whole, {"accuracy": 0.61})["accuracy"] == pytest.approx(0.0043, abs=1e-4)


def test_errors() -> None:
    with pytest.raises(ValueError, match="2 of 4 GQA questions have no prediction, first 3"):
        score(TOY, {"1": "bedroom", "2": "bedroom"})
    with pytest.raises(ValueError, match="no balanced GQA question"):
        score({}, {})
