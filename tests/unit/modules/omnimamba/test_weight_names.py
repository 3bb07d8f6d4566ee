"""Names from elsewhere: each has its place, or is named in an error."""

import pytest

from modules.omnimamba.weight_names import match_names, shortened

NEEDED = {"a": (2, 3), "b": (), "extra.c": (4,)}


def test_all_names_have_their_place() -> None:
    report = match_names("here", {"b": (), "a": (2, 3), "old.x": (1,)}, NEEDED, unused=["old.*"], optional=["extra.*"])
    assert (report.loaded, report.unused, report.absent) == (("a", "b"), ("old.x",), ("extra.c",))
    assert report.lines() == [
        "2 tensors from here",
        "1 unused on purpose: old.x",
        "1 not in it, left as they are: extra.c",
    ]


def test_all_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="the weights in here do not fit") as caught:
        match_names("here", {"a": (3, 2), "z": (1,)}, NEEDED)
    assert "2 missing: b, extra.c; 1 unexpected: z; 1 of another shape: a 3 x 2 instead of 2 x 3." in str(caught.value)
    with pytest.raises(ValueError, match=r"b 1 instead of \(\)"):
        match_names("here", {**NEEDED, "b": (1,)}, NEEDED)


def test_a_name_that_may_lack_must_fit_if_it_is_there() -> None:
    with pytest.raises(ValueError, match=r"extra\.c 5 instead of 4"):
        match_names("here", {**NEEDED, "extra.c": (5,)}, NEEDED, optional=["extra.*"])


def test_long_lists_are_cut() -> None:
    assert shortened(["a", "b"], most=2) == "a, b"
    assert shortened("abcdef") == "a, b, c, d and 2 more"
