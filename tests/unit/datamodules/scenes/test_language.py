import re

import pytest

from datamodules.scenes.draw import Object, Scene, make_scene, render
from datamodules.scenes.language import NAMES, Named, article, captions, named, presence_text, present_names

RED = Object(x=16, y=16, shape="circle", color="red", size="large")
BLUE = Object(x=48, y=16, shape="square", color="blue", size="small")
GREEN = Object(x=48, y=48, shape="cross", color="green", size="large")


def test_captions_of_one_object() -> None:
    assert captions(Scene(background=0, objects=(RED,))) == [
        "a large red circle",
        "a large red circle at the top left",
        "one object: a large red circle",
        "one object: a large red circle at the top left",
        "the image shows a large red circle",
    ]


def test_captions_of_three_objects() -> None:
    assert captions(Scene(background=0, objects=(RED, BLUE, GREEN))) == [
        "a large red circle, a small blue square and a large green cross",
        "a large red circle at the top left, a small blue square at the top right "
        "and a large green cross at the bottom right",
        "a large red circle left of a small blue square and left of a large green cross",
        "a large green cross right of a large red circle and below a small blue square",
        "three objects: a large red circle, a small blue square and a large green cross",
    ]


def test_five_different_captions_that_the_pixels_bear_out(look) -> None:
    for index in range(60):
        scene = make_scene(0, "val", index)
        seen = {f"{s.size} {s.color} {s.shape}": s for s in look(render(scene))}
        found = captions(scene)
        assert len(set(found)) == 5
        for caption in found:
            named = re.findall(r"(?:small|large) \w+ \w+", caption)
            assert sorted(named) == sorted(seen)
            for name, vertical, horizontal in re.findall(r"(\w+ \w+ \w+) at the (\w+) (\w+)", caption):
                assert (seen[name].y[0] < 32) == (vertical == "top")
                assert (seen[name].x[0] < 32) == (horizontal == "left")
            for relation, name in re.findall(r"(left of|right of|above|below) an? (\w+ \w+ \w+)", caption):
                first, second = seen[named[0]], seen[name]
                holds = {
                    "left of": first.x[1] < second.x[0],
                    "right of": second.x[1] < first.x[0],
                    "above": first.y[1] < second.y[0],
                    "below": second.y[1] < first.y[0],
                }
                assert holds[relation], caption


def test_a_single_object_answers_to_one_name_of_each_kind() -> None:
    assert present_names(Scene(background=0, objects=(RED,))) == ["circle", "red object", "red circle"]


def test_present_names_are_listed_once() -> None:
    twins = (RED, Object(x=48, y=48, shape="circle", color="blue", size="small"))
    names = ["circle", "red object", "blue object", "red circle", "blue circle"]
    assert present_names(Scene(background=0, objects=twins)) == names


def test_each_kind_always_has_an_absent_name() -> None:
    for index in range(200):
        present = set(present_names(make_scene(0, "train", index, min_objects=3)))
        assert all(set(kind) - present for kind in NAMES.values())


@pytest.mark.parametrize(("name", "expected"), [("red circle", "a red circle"), ("orange object", "an orange object")])
def test_article(name: str, expected: str) -> None:
    assert article(name) == expected
    assert presence_text(name) == f"Is there {expected} in the image?"


@pytest.mark.parametrize("index", range(12))
def test_captions_name_the_objects_of_their_scene(index: int) -> None:
    scene = make_scene(3, "train", index)
    objects = {(one.color, one.shape, one.size) for one in scene.objects}
    plain, placed, *rest = captions(scene)
    assert {(one.color, one.shape, one.size) for one in named(plain)} == objects
    assert {(one.color, one.shape, one.place) for one in named(placed)} == {
        (one.color, one.shape, one.place) for one in scene.objects
    }
    for caption in rest:
        assert {(one.color, one.shape, one.size) for one in named(caption)} == objects


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle", [Named(color="red", shape="circle", size="", place="")]),
        (
            "an orange cross at the bottom left",
            [Named(color="orange", shape="cross", size="", place="bottom left")],
        ),
        (
            "a small red circle left of a large blue square",
            [
                Named(color="red", shape="circle", size="small", place=""),
                Named(color="blue", shape="square", size="large", place=""),
            ],
        ),
        ("a dog", []),
        ("", []),
        ("a pink circle and a red circles", []),
    ],
)
def test_what_a_caption_names(caption: str, expected: list[Named]) -> None:
    assert named(caption) == expected
