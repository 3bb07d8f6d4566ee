"""Expected values: the official script's outputs, as recorded in the evaluation specification."""

from math import sqrt

import pytest

from modules.metrics.mmmu import DOMAINS, SUBJECTS, Answer, baseline, guess, is_correct, score, standard_errors

FOUR = ("1", "2", "3", "4")
NINE = tuple(str(i) for i in range(9))
GUESSES = ["D", "C", "B", "C", "A", "C", "A", "B"]


def choice(text: str, gold: str, number: int = 1, subject: str = "Math", options: tuple[str, ...] = FOUR) -> Answer:
    return Answer(
        question_id=f"validation_{subject}_{number}", subject=subject, text=text, golds=[gold], options=options
    )


def free(text: str, *golds: str, subject: str = "Music") -> Answer:
    return Answer(question_id=f"validation_{subject}_1", subject=subject, text=text, golds=golds)


def validation(text: str) -> list[Answer]:
    """As many questions of each right letter as the validation set has, and 53 open ones: two A, one B."""
    letters = "A" * 242 + "B" * 230 + "C" * 198 + "D" * 149 + "E" * 25 + "F" * 2 + "I"
    closed = [choice(text, letter, number, options=NINE) for number, letter in enumerate(letters)]
    return closed + [free(text, gold) for gold in ["A", "A", "B", *["12.5"] * 50]]


def test_thirty_subjects_in_six_domains() -> None:
    assert len(SUBJECTS) == 30
    assert [len(subjects) for subjects in DOMAINS.values()] == [4, 5, 5, 5, 4, 7]


def test_always_a() -> None:
    scores = score(validation("A"))
    assert scores["overall"] == scores["overall_strict"] == pytest.approx(0.271, abs=5e-4)
    assert scores["multiple_choice"] == pytest.approx(0.2857, abs=5e-5)
    assert scores["n_fallback"] == 0
    assert baseline(validation("B")) == scores


def test_always_b() -> None:
    assert score(validation("B"))["overall"] == pytest.approx(0.257, abs=5e-4)


def test_right_answers_score_one() -> None:
    right = [choice(letter, letter) for letter in "ABCD"] + [free(gold, gold) for gold in ("12.5", "red", "C")]
    scores = score(right)
    assert scores.pop("n_fallback") == 0
    assert set(scores.values()) == {1.0}


def test_silence_scores_nothing_but_guesses() -> None:
    scores = score(validation(""))
    assert (scores["overall_strict"], scores["open"], scores["n_fallback"]) == (0, 0, 847)
    seeds = [score(validation(""), seed=seed)["multiple_choice"] for seed in range(20)]
    assert sum(seeds) / 20 == pytest.approx(1 / 9, abs=5 * sqrt(8 / 81 / 847 / 20))


def test_guesses_depend_on_seed_and_question_alone() -> None:
    questions = [f"validation_Math_{i}" for i in range(4000)]
    guesses = [guess(question, FOUR, 0) for question in questions]
    assert guesses == [guess(question, FOUR, 0) for question in questions]
    assert guesses != [guess(question, FOUR, 1) for question in questions]
    for letter in "ABCD":
        assert guesses.count(letter) == pytest.approx(1000, abs=5 * sqrt(750))
    # fixed for ever: a change would change published scores
    assert guesses[:8] == GUESSES


def test_a_lucky_guess_counts_officially_and_not_strictly() -> None:
    lucky = choice("no idea", guess("validation_Math_1", FOUR, 0))
    assert is_correct(lucky)
    scores = score([lucky])
    assert (scores["overall"], scores["overall_strict"], scores["n_fallback"]) == (1, 0, 1)
    other = next(seed for seed in range(100) if guess("validation_Math_1", FOUR, seed) != lucky.golds[0])
    assert score([lucky], seed=other)["overall"] == 0


def test_domains_and_subjects_count_questions() -> None:
    scores = score([choice("A", "A"), choice("A", "B"), choice("A", "A", subject="Physics"), free("red", "red")])
    assert scores["subject/Math"] == 0.5
    assert scores["subject/Physics"] == 1
    assert scores["domain/Science"] == pytest.approx(2 / 3)
    assert scores["domain/Art_and_Design"] == scores["subject/Music"] == scores["open"] == 1
    assert scores["overall"] == 0.75
    assert "domain/Business" not in scores


def test_standard_errors_are_binomial() -> None:
    answers = validation("A")
    scores = score(answers)
    errors = standard_errors(answers, scores)
    assert errors["overall"] == errors["overall_strict"] == pytest.approx(0.0148, abs=5e-5)
    assert standard_errors(answers, {**scores, "overall": 0.31})["overall"] == pytest.approx(0.0154, abs=5e-5)
    assert errors["open"] == pytest.approx(sqrt(2 / 53 * 51 / 53 / 53))
    assert errors.keys() == scores.keys() - {"n_fallback"}


def test_errors() -> None:
    with pytest.raises(ValueError, match="no MMMU answers to score"):
        score([])
    with pytest.raises(ValueError, match=r"subject 'Cooking' of validation_Cooking_1 must be one of Art, "):
        score([choice("A", "A", subject="Cooking")])
    with pytest.raises(ValueError, match=r"validation_Music_1 has 0 right answers and 0 options"):
        score([free("x")])
    with pytest.raises(ValueError, match=r"has 1 right answers and 10 options; .* at most 9"):
        score([choice("A", "A", options=("x",) * 10)])
