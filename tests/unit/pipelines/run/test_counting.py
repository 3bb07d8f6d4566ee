import time

import pytest
from rich.console import Console

from pipelines.run.counting import CountProgress, PieceProgress
from pipelines.run.line import clock


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """A clock that tests set by hand."""
    hand = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: hand[0])
    return hand


def test_lines_at_most_every_ten_seconds_and_at_the_end(now: list[float], capsys) -> None:
    with CountProgress("coco") as progress:
        for second, done in enumerate(range(0, 5001, 100)):
            now[0] = 1000.0 + second
            progress.show(done, 5000)
    assert capsys.readouterr().out.splitlines() == [
        f"coco  {done}/5000  100.0 samples/s  0:00:{(5000 - done) // 100:02d} left" for done in range(1000, 5001, 1000)
    ]


def test_what_an_earlier_start_did_does_not_count_for_the_rate(now: list[float], capsys) -> None:
    with CountProgress("coco") as progress:
        progress.show(4000, 5000)
        now[0] += 20
        progress.show(4500, 5000)
    assert capsys.readouterr().out.splitlines() == [
        "coco: continuing after 4000 of 5000",
        "coco  4500/5000  25.0 samples/s  0:00:20 left",
    ]


def test_a_terminal_shows_a_bar_with_rate_and_time_left(now: list[float], capsys) -> None:
    console = Console(force_terminal=True, width=120)
    with CountProgress("coco", console=console) as progress:
        progress.show(0, 5000)
        now[0] += 1
        progress.show(1000, 5000)
    said = capsys.readouterr().out
    assert "1000/5000" in said
    assert "1,000.0 samples/s  0:00:04 left" in said


def test_a_build_with_nothing_left_to_do_has_no_rate(now: list[float], capsys) -> None:
    with CountProgress("coco") as progress:
        progress.show(10, 10)
        progress.show(10, 10)
    assert capsys.readouterr().out.splitlines() == ["coco: continuing after 10 of 10"]


def test_what_follows_is_named_where_the_time_left_was(now: list[float], capsys) -> None:
    with CountProgress("pope", then="scoring") as progress:
        for done in (0, 2, 4):
            progress.show(done, 4)
            now[0] += 11
    assert capsys.readouterr().out.splitlines() == [
        "pope  2/4  0.2 samples/s  0:00:11 left",
        "pope  4/4  0.2 samples/s  scoring",
    ]


@pytest.mark.parametrize(
    ("width", "there", "left_out"),
    [(80, ["coco", "3000/5000", "0:00:02 left"], []), (30, ["3000/5000", "0:00:02 left"], ["━", "samples/s"])],
)
def test_the_count_and_the_time_left_stay_longest(
    now: list[float], capsys, width: int, there: list[str], left_out: list[str]
) -> None:
    with CountProgress("coco", console=Console(force_terminal=True, width=width)) as progress:
        progress.show(0, 5000)
        now[0] += 3
        progress.show(3000, 5000)
    last = capsys.readouterr().out.rsplit("\r", 1)[1]
    assert [part for part in there if part not in last] == []
    assert [part for part in left_out if part in last] == []


def test_pieces_are_named_once_they_take_long(now: list[float], capsys) -> None:
    with PieceProgress("export") as progress:
        progress.show("read", 0, 3)
        now[0] += 1
        progress.show("write", 1, 3)
        now[0] += 1.5
        progress.show("write more", 2, 3)
    assert capsys.readouterr().out == "export  3/3  write more\n"


def test_a_terminal_names_each_piece_and_is_left_clean(now: list[float], capsys) -> None:
    with PieceProgress("export", console=Console(force_terminal=True, width=80)) as progress:
        for done, what in enumerate(("read the weights", "write the model")):
            progress.show(what, done, 2)
    said = capsys.readouterr().out
    assert said.index("1/2  read the weights") < said.index("2/2  write the model")
    assert said.endswith("\x1b[2K")  # the line is erased


def test_durations_are_read_as_on_a_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 61, 3600 * 27 + 59.9)] == ["0:00:00", "0:01:01", "27:01:00"]
