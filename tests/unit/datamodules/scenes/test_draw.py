from collections import Counter

import pytest

from datamodules.scenes.dice import Dice
from datamodules.scenes.draw import COLORS, SHAPES, make_scene, render


def test_dice_are_the_same_on_every_machine() -> None:
    # written down once: a change here changes every data set
    dice = Dice("scene", 0, "train", 0, 0)
    assert [dice.below(1000) for _ in range(5)] == [589, 808, 737, 959, 601]


def test_dice_depend_on_the_whole_key() -> None:
    assert Dice("a", 1).below(2**60) != Dice("a", 2).below(2**60)
    assert sorted(Dice("a").shuffled("abcdef")) == list("abcdef")
    assert Dice("a").chance(1.0)
    assert not Dice("a").chance(0.0)


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    assert make_scene(3, "train", 7) == make_scene(3, "train", 7)
    others = [make_scene(4, "train", 7), make_scene(3, "val", 7), make_scene(3, "train", 8)]
    assert make_scene(3, "train", 7) not in others


def test_the_pixels_show_what_the_scene_says(look) -> None:
    for index in range(150):
        scene = make_scene(0, "train", index)
        said = sorted((each.color, each.shape, each.size, each.place) for each in scene.objects)
        seen = [
            (s.color, s.shape, s.size, f"{'top' if s.y[0] < 32 else 'bottom'} {'left' if s.x[0] < 32 else 'right'}")
            for s in look(render(scene))
        ]
        assert sorted(seen) == said, index


def test_boxes_are_where_the_pixels_are(look) -> None:
    for index in range(50):
        scene = make_scene(1, "train", index, min_objects=1, max_objects=1)
        left, top, right, bottom = scene.objects[0].box
        (seen,) = look(render(scene))
        # a triangle's tip is thinner than half a pixel
        assert seen.x[0] >= left
        assert seen.x[1] < right
        assert abs(seen.y[0] - top) <= 2
        assert abs(seen.y[1] + 1 - bottom) <= 1


def test_every_shape_color_and_number_occurs_about_equally_often() -> None:
    scenes = [make_scene(0, "train", index) for index in range(600)]
    numbers = Counter(len(scene.objects) for scene in scenes)
    assert all(150 < numbers[count] < 250 for count in (1, 2, 3))
    objects = [each for scene in scenes for each in scene.objects]
    for attribute, values in (("shape", SHAPES), ("color", COLORS)):
        counts = Counter(getattr(each, attribute) for each in objects)
        expected = len(objects) / len(values)
        assert all(0.8 * expected < counts[value] < 1.2 * expected for value in values)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_number_of_objects_is_a_setting(count: int) -> None:
    scenes = [make_scene(0, "val", index, min_objects=count, max_objects=count) for index in range(20)]
    assert {len(scene.objects) for scene in scenes} == {count}


def test_names_are_unique_within_a_scene() -> None:
    for index in range(300):
        names = [each.name for each in make_scene(0, "train", index).objects]
        assert len(set(names)) == len(names)


def test_no_validation_scene_is_a_training_scene_whatever_the_seed() -> None:
    # one-object scenes are so few that chance alone would repeat many
    train = {make_scene(0, "train", index, max_objects=1) for index in range(1500)}
    val = {make_scene(seed, "val", index, max_objects=1) for seed in (0, 1) for index in range(150)}
    assert len(train) < 1500
    assert not train & val
