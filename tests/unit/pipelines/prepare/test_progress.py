import time

import pytest
from rich.console import Console

from pipelines.prepare.progress import BuildProgress, clock


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """A clock that tests set by hand."""
    hand = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: hand[0])
    return hand


def test_lines_at_most_every_ten_seconds_and_at_the_end(now: list[float], capsys) -> None:
    with BuildProgress("coco") as progress:
        for second, done in enumerate(range(0, 5001, 100)):
            now[0] = 1000.0 + second
            progress.show(done, 5000)
    assert capsys.readouterr().out.splitlines() == [
        f"coco  {done}/5000  100.0 samples/s  0:00:{(5000 - done) // 100:02d} left" for done in range(1000, 5001, 1000)
    ]


def test_what_an_earlier_start_did_does_not_count_for_the_rate(now: list[float], capsys) -> None:
    with BuildProgress("coco") as progress:
        progress.show(4000, 5000)
        now[0] += 20
        progress.show(4500, 5000)
    assert capsys.readouterr().out.splitlines() == [
        "coco: continuing after 4000 of 5000",
        "coco  4500/5000  25.0 samples/s  0:00:20 left",
    ]


def test_a_terminal_shows_a_bar_with_rate_and_time_left(now: list[float], capsys) -> None:
    console = Console(force_terminal=True, width=120)
    with BuildProgress("coco", console=console) as progress:
        progress.show(0, 5000)
        now[0] += 1
        progress.show(1000, 5000)
    said = capsys.readouterr().out
    assert "1000/5000" in said
    assert "1,000.0 samples/s  0:00:04 left" in said


def test_a_build_with_nothing_left_to_do_has_no_rate(now: list[float], capsys) -> None:
    with BuildProgress("coco") as progress:
        progress.show(10, 10)
        progress.show(10, 10)
    assert capsys.readouterr().out.splitlines() == ["coco: continuing after 10 of 10"]


def test_durations_are_read_as_on_a_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 61, 3600 * 27 + 59.9)] == ["0:00:00", "0:01:01", "27:01:00"]
