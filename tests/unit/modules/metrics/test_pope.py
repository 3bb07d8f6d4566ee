"""Expected values: the official script's outputs and published logs, as recorded in the evaluation specification."""

from math import sqrt

import pytest

from modules.metrics.pope import Answer, baseline, is_unparsed, parse, score, standard_errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No", "no"),
        ("No.", "no"),
        ("There is no dog.", "no"),
        ("The image does not show a dog", "no"),
        ("Yes, no doubt", "no"),
        ("NO", "yes"),
        ("No!", "yes"),
        ("no\n", "yes"),
        ("nope", "yes"),
        ("", "yes"),
        ("There isn't a dog", "yes"),
        ("unsure", "yes"),
        ("Yes. No dog here", "yes"),
    ],
)
def test_official_rule(text: str, expected: str) -> None:
    assert parse(text, strip=False) == expected


def test_answers_are_stripped_before_the_official_rule() -> None:
    assert parse("no\n") == "no"
    assert parse(" \tno ") == "no"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", False),
        ("no.", False),
        ("NO, it is not", False),
        ("Yes!", False),
        ("", True),
        ("There is no", True),
        ("nope", True),
    ],
)
def test_unparsed(text: str, expected: bool) -> None:
    assert is_unparsed(text) == expected


def answers(split: str, tp: int, fp: int, tn: int, fn: int) -> list[Answer]:
    return [
        Answer(split=split, image="a.jpg", text=text, label=label)
        for text, label, times in (("Yes", "yes", tp), ("Yes", "no", fp), ("No", "no", tn), ("No", "yes", fn))
        for _ in range(times)
    ]


def test_llava_13b_random() -> None:
    scores = score(answers("random", 1183, 31, 1379, 317))
    assert scores["random/accuracy"] == pytest.approx(0.8804123711, abs=1e-10)
    assert scores["random/precision"] == pytest.approx(0.9744645799, abs=1e-10)
    assert scores["random/recall"] == pytest.approx(0.7886666667, abs=1e-10)
    assert scores["random/f1"] == scores["f1_random"] == pytest.approx(0.8717759764, abs=1e-10)
    assert scores["random/yes_ratio"] == pytest.approx(0.4171821306, abs=1e-10)
    assert scores["unparsed_ratio"] == 0


def test_llava_13b_mean_of_three_f1_is_the_published_859() -> None:
    # false positives from the published F1: the positives of the three splits are the same
    popular, adversarial = answers("popular", 1183, 59, 1441, 317), answers("adversarial", 1183, 117, 1383, 317)
    scores = score(answers("random", 1183, 31, 1379, 317) + popular + adversarial)
    assert scores["popular/f1"] == pytest.approx(0.8628738147, abs=1e-10)
    assert scores["adversarial/f1"] == pytest.approx(0.845, abs=1e-10)
    assert scores["f1_macro"] == pytest.approx(0.8598832637, abs=1e-10)


def test_prumerge_log() -> None:
    given = (
        answers("popular", 778, 21, 1479, 722)
        + answers("adversarial", 778, 76, 1424, 722)
        + answers("random", 778, 23, 1387, 722)
    )
    scores = score(given)
    assert scores["popular/f1"] == pytest.approx(0.6768160070, abs=1e-10)
    assert scores["adversarial/f1"] == pytest.approx(0.6610025489, abs=1e-10)
    assert scores["random/f1"] == pytest.approx(0.6762277271, abs=1e-10)
    assert scores["f1_macro"] == pytest.approx(0.6713487610, abs=1e-10)
    assert scores["acc_macro"] == pytest.approx(0.7434398625, abs=1e-10)
    assert scores["f1_pooled"] == pytest.approx(0.6712683348, abs=1e-10)


def labels(split: str, yes: int, no: int, text: str) -> list[Answer]:
    return [Answer(split=split, image="a.jpg", text=text, label="yes")] * yes + [
        Answer(split=split, image="a.jpg", text=text, label="no")
    ] * no


def test_always_yes() -> None:
    three = [
        *labels("random", 1500, 1500, ""),
        *labels("popular", 1500, 1500, ""),
        *labels("adversarial", 1500, 1500, ""),
    ]
    scores = score(three)
    assert [scores[f"popular/{name}"] for name in ("accuracy", "precision", "recall", "yes_ratio")] == [0.5, 0.5, 1, 1]
    assert scores["f1_macro"] == pytest.approx(2 / 3)
    assert scores["unparsed_ratio"] == 1  # silence counts as yes, and that shows
    assert scores["acc_macro"] == 0.5
    older = score([*labels("random", 1500, 1410, "Yes"), *three[3000:]])
    assert older["random/accuracy"] == pytest.approx(0.515464, abs=1e-6)
    assert older["random/f1"] == pytest.approx(0.680272, abs=1e-6)
    assert older["f1_macro"] == pytest.approx(0.671202, abs=1e-6)


def test_always_no_divides_zero_by_zero_to_zero() -> None:
    scores = score(labels("random", 1500, 1410, "No"))
    assert scores["random/accuracy"] == pytest.approx(0.484536, abs=1e-6)
    assert [scores[f"random/{name}"] for name in ("precision", "recall", "f1", "yes_ratio")] == [0, 0, 0, 0]
    assert score(labels("random", 1500, 1500, "No"))["random/accuracy"] == 0.5


def test_baseline_is_always_yes_on_the_same_labels() -> None:
    assert baseline(labels("random", 30, 10, "No")) == score(labels("random", 30, 10, "Yes"))


def test_f1_random_needs_a_random_split() -> None:
    assert "f1_random" not in score(labels("popular", 1, 1, "No"))


def test_standard_error_with_one_question_an_image_is_binomial() -> None:
    given = [
        Answer(split="random", image=str(i), text="Yes" if i % 5 else "No", label="yes" if i % 2 else "no")
        for i in range(1000)
    ]
    p = score(given)["random/accuracy"]
    assert standard_errors(given)["random/accuracy"] == pytest.approx(sqrt(p * (1 - p) / 1000), rel=0.1)
    split = [
        Answer(split="random", image=str(i), text="Yes", label="yes" if i % 50 < 43 else "no") for i in range(3000)
    ]
    assert standard_errors(split)["random/accuracy"] == pytest.approx(0.0063, rel=0.1)


def test_standard_error_counts_images_not_questions() -> None:
    # six equal questions on each of 100 images say no more than one question on each
    once = [Answer(split="random", image=str(i), text="Yes", label="yes" if i % 2 else "no") for i in range(100)]
    assert standard_errors(once * 6)["random/accuracy"] == pytest.approx(standard_errors(once)["random/accuracy"])


def test_standard_errors_are_the_same_every_time() -> None:
    given = answers("random", 5, 4, 3, 2)
    assert standard_errors(given) == standard_errors(given)


def test_errors() -> None:
    with pytest.raises(ValueError, match="no POPE answers to score"):
        score([])
    with pytest.raises(ValueError, match=r"POPE label 'maybe' of a.jpg"):
        score([Answer(split="random", image="a.jpg", text="Yes", label="maybe")])  # type: ignore[arg-type]
