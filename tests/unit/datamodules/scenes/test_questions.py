import re
from collections import Counter, defaultdict

from datamodules.scenes.benchmarks import some_questions
from datamodules.scenes.dice import Dice
from datamodules.scenes.draw import Object, Scene, make_scene, render
from datamodules.scenes.questions import ALWAYS_KINDS, ANSWERS, KINDS, questions


def answer_from_pixels(text: str, seen) -> str:
    """The answer to a question, from what was found in the picture; its words are parsed, nothing is taken on trust."""

    def matching(name: str):
        words = name.split()
        return [s for s in seen if all(word in (s.color, s.shape, "object") for word in words)]

    def only(name: str):
        (found,) = matching(name)
        return found

    def yes(holds: bool) -> str:
        return "yes" if holds else "no"

    relations = {
        "left of": lambda a, b: a.x[1] < b.x[0],
        "right of": lambda a, b: b.x[1] < a.x[0],
        "above": lambda a, b: a.y[1] < b.y[0],
        "below": lambda a, b: b.y[1] < a.y[0],
    }
    if found := re.fullmatch(r"Is there an? (.*) in the image\?", text):
        return yes(bool(matching(found[1])))
    if found := re.fullmatch(r"Are there both an? (.*) and an? (.*) in the image\?", text):
        return yes(bool(matching(found[1]) and matching(found[2])))
    if text == "How many objects are there?":
        return str(len(seen))
    if found := re.fullmatch(r"What color is the (.*)\?", text):
        return only(found[1]).color
    if found := re.fullmatch(r"What shape is the (.*)\?", text):
        return only(found[1]).shape
    if found := re.fullmatch(r"Is the (.*) small or large\?", text):
        return only(found[1]).size
    if found := re.fullmatch(r"Is the (.*) (left or right of|above or below) the (.*)\?", text):
        options = ("left of", "right of") if "left" in found[2] else ("above", "below")
        (holding,) = [name for name in options if relations[name](only(found[1]), only(found[3]))]
        return holding.split()[0]
    if found := re.fullmatch(r"Is the (.*) (left of|right of|above|below) the (.*)\?", text):
        return yes(relations[found[2]](only(found[1]), only(found[3])))
    if found := re.fullmatch(r"Is the (.*) an? (\w+)\?", text):
        return yes(only(found[1]).shape == found[2])
    found = re.fullmatch(r"Is the (.*) (\w+)\?", text)
    assert found, text
    return yes(found[2] in (only(found[1]).color, only(found[1]).size))


def test_every_answer_follows_from_the_pixels(look) -> None:
    forms = set()
    for index in range(150):
        scene = make_scene(5, "val", index)
        seen = look(render(scene))
        for question in questions(scene, Dice("test", index)):
            assert question.answer == answer_from_pixels(question.text, seen), (index, question.text)
            assert question.answer in ANSWERS
            forms.add(question.detailed)
    assert len(forms) == 11


def test_yes_and_no_are_equally_likely_whatever_is_asked() -> None:
    answers = defaultdict(Counter)
    for index in range(700):
        for question in questions(make_scene(0, "train", index), Dice("balance", index)):
            if question.answer in ("yes", "no"):
                words = len(question.text.split()) if question.detailed == "exist" else 0
                answers[question.detailed, words, "object" in question.text][question.answer] += 1
    assert len(answers) == 8
    for form, counts in answers.items():
        total = counts.total()
        # four standard deviations of a fair coin
        assert abs(counts["yes"] - total / 2) < 2 * total**0.5, (form, counts)


def test_nothing_ambiguous_is_asked() -> None:
    twins = (
        Object(x=16, y=16, shape="circle", color="red", size="large"),
        Object(x=16, y=48, shape="circle", color="blue", size="small"),
    )
    for number in range(30):
        texts = [question.text for question in questions(Scene(background=0, objects=twins), Dice(number))]
        assert not [text for text in texts if "the circle" in text]
        assert not [text for text in texts if "left or right" in text]


def test_full_answers_and_programs() -> None:
    scene = Scene(background=0, objects=(Object(x=16, y=16, shape="circle", color="orange", size="large"),))
    by_form = {question.detailed: question for question in questions(scene, Dice("x"))}
    query = by_form["colorQuery"]
    assert (query.text, query.answer) == ("What color is the circle?", "orange")
    assert query.full_answer == "The circle is orange."
    assert query.program == (("select", (), "circle"), ("query", (0,), "color"))
    assert query.group == "color"
    assert by_form["count"].full_answer == "There is one object."
    assert by_form["shapeQuery"].full_answer == "The orange object is a circle."


def test_programs_depend_on_earlier_steps_only() -> None:
    for index in range(50):
        for question in questions(make_scene(0, "train", index), Dice(index)):
            for number, (_, depends_on, _) in enumerate(question.program):
                assert all(step < number for step in depends_on)
            used = {step for _, depends_on, _ in question.program for step in depends_on}
            assert used == set(range(len(question.program) - 1))


def test_only_the_kinds_that_are_asked_for_are_drawn() -> None:
    for index in range(60):
        scene = make_scene(0, "train", index)
        asked = some_questions(scene, Dice(index), 20, ("exist", "colorQuery"))
        assert {question.detailed for question in asked} <= {"exist", "colorQuery"}
        assert sum(question.detailed == "exist" for question in asked) == 3
    every = {q.detailed for i in range(60) for q in some_questions(make_scene(0, "train", i), Dice(i), 20)}
    assert every == set(KINDS)
    for kind in ALWAYS_KINDS:
        assert all(some_questions(make_scene(0, "train", i), Dice(i), 1, (kind,)) for i in range(60))
