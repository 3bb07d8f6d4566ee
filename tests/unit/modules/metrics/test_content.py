from dataclasses import dataclass
from math import sqrt

import pytest

from modules.metrics.content import score, tally


@dataclass(frozen=True)
class Thing:
    color: str
    shape: str
    size: str = "large"
    place: str = "top left"


RED = Thing("red", "circle")
BLUE = Thing("blue", "square", "small", "bottom right")


def test_what_is_as_named_is_right_in_every_respect() -> None:
    assert tally([RED, BLUE], [BLUE, RED]) == {
        "content": (2, 2),
        "content_all": (1, 1),
        "color": (2, 2),
        "shape": (2, 2),
        "size": (2, 2),
        "place": (2, 2),
        "number": (1, 1),
    }


@pytest.mark.parametrize(
    ("seen", "content", "everything", "aspects", "number"),
    [
        ([], 0, 0, (0, 0, 0, 0), 0),
        ([Thing("blue", "circle")], 0, 0, (0, 1, 1, 1), 1),
        ([Thing("red", "")], 0, 0, (1, 0, 1, 1), 1),
        ([Thing("red", "circle", "small")], 1, 1, (1, 1, 0, 1), 1),
        ([Thing("red", "circle", "large", "top right")], 0, 0, (1, 1, 1, 0), 1),
        ([RED, BLUE], 1, 0, (1, 1, 1, 1), 0),
        ([Thing("red", "square"), Thing("blue", "circle")], 0, 0, (1, 0, 1, 1), 0),
    ],
    ids=["nothing", "another colour", "no shape", "another size", "another place", "one too many", "exchanged"],
)
def test_one_named_object(
    seen: list[Thing], content: int, everything: int, aspects: tuple[int, ...], number: int
) -> None:
    found = tally([RED], seen)
    assert (found["content"], found["content_all"]) == ((content, 1), (everything, 1))
    assert tuple(found[aspect][0] for aspect in ("color", "shape", "size", "place")) == aspects
    assert found["number"] == (number, 1)


def test_one_seen_object_stands_for_one_named_object_alone() -> None:
    assert tally([RED, RED], [RED])["content"] == (1, 2)


def test_what_the_caption_does_not_say_does_not_count() -> None:
    found = tally([Thing("red", "circle", "", "")], [RED])
    assert found["content"] == (1, 1)
    assert found["size"] == found["place"] == (0, 0)


def test_many_objects_are_compared_in_no_time() -> None:
    noise = [Thing("green", "cross", "small", "bottom left")] * 400
    found = tally([RED, BLUE, RED], [RED, *noise])
    assert found["content"] == (1, 3)


def test_shares_and_their_errors_are_those_of_a_ratio_over_pictures() -> None:
    tallies = [tally([RED], [RED]), tally([RED, BLUE], [RED]), tally([RED, BLUE], [])]
    found = score(tallies)
    assert found.metrics["content"] == pytest.approx(2 / 5)
    assert found.counts == {"content": 5, "content_all": 3, "color": 5, "shape": 5, "size": 5, "place": 5, "number": 3}
    # residuals 1 - 2/5, 1 - 4/5 and 0 - 4/5
    assert found.standard_errors["content"] == pytest.approx(sqrt(0.6**2 + 0.2**2 + 0.8**2) / 5)
    # of one object each, the error of a share
    same = score([tally([RED], seen) for seen in ([RED], [RED], [RED], [BLUE])])
    assert same.standard_errors["content"] == pytest.approx(sqrt(0.75 * 0.25 / 4))


def test_an_aspect_that_no_caption_names_has_no_score() -> None:
    assert "place" not in score([tally([Thing("red", "circle", "large", "")], [RED])]).metrics


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="a caption that names no object has no content to score"):
        tally([], [RED])
    with pytest.raises(ValueError, match="no pictures to score"):
        score([])
