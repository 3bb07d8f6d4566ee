"""TensorBoard's own reader finds what was logged, once, and training goes on without it."""

import logging
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.tracking import Tracker, TrackingConfig, read_metrics


def tracker(folder: Path, attempt: int = 1) -> Tracker:
    config = TrackingConfig(wandb="disabled", tensorboard=True)
    return Tracker(folder, config, name="tiny", run_id="abc", attempt=attempt, settings={}, write=True)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_numbers_and_pictures_are_there(tmp_path: Path) -> None:
    logged = tracker(tmp_path)
    logged.log(1, {"train/loss": 2.5, "eval/f1": None, "train/bad": float("nan")})
    logged.log(2, {"train/loss": 1.5})
    logged.log_images(2, "eval/samples", [Image.new("RGB", (4, 6), "red"), Image.new("L", (4, 6))], ["red", "black"])
    logged.close()
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 2.5), (2, 1.5)]
    assert "eval/f1" not in found.Tags()["scalars"]
    (picture,) = found.Images("eval/samples")
    assert (picture.step, picture.height) == (2, 6)
    assert picture.width == 8  # side by side


def test_after_a_rollback_the_later_attempt_counts(tmp_path: Path) -> None:
    first = tracker(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"train/loss": float(step)})
    first.close()
    second = tracker(tmp_path, attempt=2)
    for step in (2, 3, 4):
        second.log(step, {"train/loss": 10.0 * step})
    second.close()
    found = [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]


def test_a_place_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file, where the folder should be")
    logged = tracker(tmp_path)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            logged.log(step, {"train/loss": 1.0})
        logged.close()
    assert caplog.text.count("tensorboard gets no more data") == 1
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_pictures_of_two_sizes_end_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logged = tracker(tmp_path)
    logged.log_images(1, "eval/samples", [Image.new("RGB", (4, 6)), Image.new("RGB", (5, 6))], ["a", "b"])
    logged.close()
    assert "tensorboard gets no more data" in caplog.text


def test_without_tensorboard_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.tensorboard.find_spec", lambda _: None)
    (problem,) = TrackingConfig(wandb="disabled", tensorboard=True).problems()
    assert (
        problem == "tracking.tensorboard=true needs tensorboard, which is not installed: pip install '.[tensorboard]'"
    )
    assert TrackingConfig(wandb="disabled").problems() == []
