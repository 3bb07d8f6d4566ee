"""Time and memory over batch and length: what is fitted to, and real steps on a CPU."""

from dataclasses import replace

import pytest

from modules.omnimamba.config import VisionConfig
from pipelines.benchmark.sizes import Line, Point, SizesBenchmarkConfig, lines_of, measure_sizes
from pipelines.run.hardware import HardwareConfig
from tests.unit.modules.omnimamba.conftest import TINY as SMALL

TINY = replace(SMALL, vision=VisionConfig(kind="features", given_patches=3, given_width=5))


def test_the_lines_are_those_that_the_points_lie_on() -> None:
    """5 ms a step and 2 us a position; 3 us for the longer ones, whose memory ends."""
    points = [Point(100, batch, 0.005 + 2e-6 * 100 * batch, 1.0) for batch in (1, 2, 4)]
    points += [Point(1000, batch, 0.005 + 3e-6 * 1000 * batch, 1.0) for batch in (1, 2)]
    points += [Point(1000, 4, None, None), Point(8000, 1, 0.1, 1.0), Point(8000, 2, None, None)]
    first, second = lines_of(points)
    assert (first.length, first.largest, first.ended) == (100, 4, None)
    assert (first.fixed_ms, first.us_a_position) == (pytest.approx(5), pytest.approx(2))
    assert second == Line(1000, pytest.approx(5), pytest.approx(3), 2, 4)  # type: ignore[arg-type]


def test_steps_of_all_sizes_are_measured() -> None:
    config = SizesBenchmarkConfig(
        batches=(1, 3),
        lengths=(12, 20),
        model=TINY,
        hardware=HardwareConfig(),
        precision="float32",
        warmup=1,
        repeats=1,
    )
    said: list[str] = []
    found = measure_sizes(config, said.append)
    assert [(point["length"], point["batch"]) for point in found["points"]] == [(12, 1), (12, 3), (20, 1), (20, 3)]
    assert all(point["seconds"] > 0 for point in found["points"])
    assert [line.split(":")[0] for line in said] == ["1 x 12", "3 x 12", "1 x 20", "3 x 20"]
    assert [line["length"] for line in found["lines"]] == [12, 20]
    assert found["gpu"] == "CPU"


def test_broken_rules() -> None:
    problems = SizesBenchmarkConfig(model=TINY, lengths=(5, 400), batches=(0,), repeats=0).problems()
    assert problems == [
        "lengths=[5, 400] must lie between 11 (a caption and one token of a picture) and model.t2i_positions=20",
        "batches=[0] must be numbers of at least 1, for example [1,16]",
        "warmup=2 and repeats=0 must be at least 1",
    ]
