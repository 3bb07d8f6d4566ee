from collections.abc import Callable

import pytest
import torch
from PIL import Image, ImageDraw

from datamodules.images import to_tensor
from datamodules.scenes.draw import BACKGROUNDS, COLORS, SHAPES, make_scene, outline, render
from datamodules.scenes.look import Seen, look


def canvas(background: int = 0) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (64, 64), BACKGROUNDS[background])
    return image, ImageDraw.Draw(image)


def seen_in(image: Image.Image) -> list[Seen]:
    return look(to_tensor(image)[None])[0]


def test_real_scenes_are_read_as_another_reader_reads_them(look: Callable[[Image.Image], list[object]]) -> None:
    wrong = objects = 0
    for index in range(60):
        scene = make_scene(1, "train", index)
        mine = {(one.color, one.shape, one.size, one.place) for one in seen_in(render(scene))}
        others = {
            (
                one.color,
                one.shape,
                one.size,
                f"{'top' if one.y[0] < 32 else 'bottom'} {'left' if one.x[0] < 32 else 'right'}",
            )  # type: ignore[attr-defined]
            for one in look(render(scene))
        }
        assert others == {(one.color, one.shape, one.size, one.place) for one in scene.objects}
        objects += len(others)
        wrong += len(others - mine)
        assert len(mine) == len(others)
    assert wrong <= 0.02 * objects


def test_all_pictures_of_a_batch_are_read_alone() -> None:
    pictures = torch.stack([to_tensor(render(make_scene(0, "val", index))) for index in range(8)])
    assert look(pictures) == [look(picture[None])[0] for picture in pictures]


def test_nothing_is_seen_on_an_empty_picture_or_among_specks() -> None:
    image, pen = canvas()
    assert seen_in(image) == []
    for place in range(4, 60, 8):
        pen.rectangle((place, place, place + 3, place + 3), fill=COLORS["red"])
    assert seen_in(image) == []


def test_a_picture_of_one_colour_alone_is_one_square() -> None:
    image = Image.new("RGB", (64, 64), COLORS["blue"])
    [one] = seen_in(image)
    assert (one.color, one.shape, one.size) == ("blue", "square", "large")


@pytest.mark.parametrize("box", [(4, 4, 28, 14), (10, 2, 16, 30)], ids=["wide", "high"])
def test_what_is_not_as_wide_as_high_has_no_shape(box: tuple[int, int, int, int]) -> None:
    image, pen = canvas()
    pen.rectangle(box, fill=COLORS["green"])
    assert [one.shape for one in seen_in(image)] == [""]


def test_a_torn_shape_has_none() -> None:
    image, pen = canvas()
    pen.rectangle((4, 4, 8, 29), fill=COLORS["green"])
    pen.rectangle((4, 25, 29, 29), fill=COLORS["green"])
    assert [one.shape for one in seen_in(image)] == [""]


def test_two_colours_that_touch_are_one_object_of_the_larger() -> None:
    image, pen = canvas()
    pen.rectangle((4, 4, 29, 20), fill=COLORS["green"])
    pen.rectangle((4, 21, 29, 29), fill=COLORS["red"])
    [one] = seen_in(image)
    assert one.color == "green"


def test_the_largest_comes_first_and_the_place_is_that_of_the_middle() -> None:
    image, pen = canvas(2)
    pen.ellipse((2, 2, 15, 15), fill=COLORS["purple"])
    pen.rectangle((27, 34, 52, 59), fill=COLORS["orange"])
    assert [(one.color, one.shape, one.size, one.place) for one in seen_in(image)] == [
        ("orange", "square", "large", "bottom right"),
        ("purple", "circle", "small", "top left"),
    ]


def test_outlines_fill_their_box() -> None:
    shares = {
        shape: float((to_tensor(outline(shape, 60, 60).convert("RGB"))[0] >= 128).float().mean()) for shape in SHAPES
    }
    # closed forms: pi / 4, 1, 1 / 2, 5 / 9
    assert shares == pytest.approx({"circle": 0.785, "square": 1, "triangle": 0.5, "cross": 5 / 9}, abs=0.02)
