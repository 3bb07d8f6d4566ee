"""Expected values: the official script's outputs, as recorded in the evaluation specification."""

from math import sqrt

import pytest

from modules.metrics.mme import COGNITION, PERCEPTION, Answer, baseline, parse, score, standard_errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("No.", "no"),
        ("Not sure", "no"),
        ("Nope", "no"),
        ("I know", "other"),
        ("The answer is yes", "other"),
        ("Unknown", "other"),
        ("Eyes", "yes"),
        (" Yes", "yes"),
        ("", "other"),
    ],
)
def test_official_rule(text: str, expected: str) -> None:
    assert parse(text) == expected


def answers(images: int, texts: tuple[str, str], category: str = "existence") -> list[Answer]:
    return [
        Answer(category=category, image=f"{i}.jpg", text=text, label=label)
        for i in range(images)
        for text, label in zip(texts, ("yes", "no"), strict=True)
    ]


def everywhere(texts: tuple[str, str]) -> list[Answer]:
    return [answer for category in PERCEPTION + COGNITION for answer in answers(10, texts, category)]


def test_the_official_tasks() -> None:
    assert (len(PERCEPTION), len(COGNITION)) == (10, 4)


@pytest.mark.parametrize(
    ("texts", "perception", "cognition", "others"),
    [
        (("Yes", "Yes"), 500, 200, 0),
        (("No", "No"), 500, 200, 0),
        (("maybe", ""), 0, 0, 280),
        (("Yes", "No"), 2000, 800, 0),
    ],
)
def test_known_totals(texts: tuple[str, str], perception: float, cognition: float, others: int) -> None:
    scores = score(everywhere(texts))
    assert (scores["perception"], scores["cognition"], scores["n_other"]) == (perception, cognition, others)


def test_a_fair_coin_scores_75_a_task() -> None:
    # a coin gives each of the four pairs of answers equally often
    coin = [
        Answer(category=category, image=f"{a}{b}.jpg", text=text, label=label)
        for category in PERCEPTION + COGNITION
        for a in ("yes", "no")
        for b in ("yes", "no")
        for text, label in ((a, "yes"), (b, "no"))
    ]
    scores = score(coin)
    assert (scores["perception"], scores["cognition"]) == (750, 300)


HALF = [
    *answers(1, ("Yes", "No")),
    Answer(category="existence", image="b.jpg", text="Yes", label="yes"),
    Answer(category="existence", image="b.jpg", text="Yes", label="no"),
]


def test_two_pictures_one_of_them_half_right() -> None:
    scores = score(HALF)
    assert (scores["existence/acc"], scores["existence/acc_plus"], scores["existence/score"]) == (0.75, 0.5, 125)


def test_pairs_are_found_by_picture_in_any_order() -> None:
    assert score(HALF[::-1]) == score(HALF)
    assert score([HALF[0], HALF[2], HALF[1], HALF[3]]) == score(HALF)


def test_totals_are_left_out_unless_all_their_tasks_are_there() -> None:
    some = [answer for category in PERCEPTION[1:] + COGNITION for answer in answers(2, ("Yes", "No"), category)]
    scores = score(some)
    assert "perception" not in scores
    assert scores["cognition"] == 800
    assert "perception" not in standard_errors(some)


def test_standard_errors_count_pictures_and_add_over_tasks() -> None:
    errors = standard_errors(HALF)
    assert errors["existence/acc_plus"] == pytest.approx(sqrt(0.25 / 2))
    # the pictures score 200 and 50
    assert errors["existence/score"] == pytest.approx(75 / sqrt(2))
    both = [
        Answer(category=category, image=answer.image, text=answer.text, label=answer.label)
        for category in COGNITION
        for answer in HALF
    ]
    assert standard_errors(both)["cognition"] == pytest.approx(sqrt(4) * 75 / sqrt(2))


def test_baseline_is_always_yes() -> None:
    assert baseline(everywhere(("", "No"))) == score(everywhere(("Yes", "Yes")))


def test_errors() -> None:
    with pytest.raises(ValueError, match="no MME answers to score"):
        score([])
    with pytest.raises(ValueError, match=r"picture 0.jpg \(existence\) has 1 answers; it must have two"):
        score(HALF[:1])
    with pytest.raises(ValueError, match=r"MME label 'Yes' of a.jpg \(OCR\)"):
        score([Answer(category="OCR", image="a.jpg", text="", label="Yes")])  # type: ignore[arg-type]
