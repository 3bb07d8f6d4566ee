"""Which checkpoint is the best by a measure."""

from pathlib import Path

import pytest

from callbacks.checkpointing import CheckpointConfig, best_step
from modules.files import step_name

KEY = "eval/pope/f1_macro"
ROWS = [
    {"step": 10, KEY: 0.5},
    {"step": 20, KEY: 0.9},
    {"step": 20, "train/loss": 1.0},
    {"step": 30, KEY: None},
    {"step": 40, KEY: 0.9},
    {"step": 50, KEY: 0.99},
]


@pytest.mark.parametrize(("direction", "step"), [("highest", 20), ("lowest", 10)])
def test_the_best_of_those_that_are_there(tmp_path: Path, direction: str, step: int) -> None:
    config = CheckpointConfig(best=KEY, best_is=direction)  # type: ignore[arg-type]
    assert best_step(ROWS, tmp_path, config) is None
    for each in (10, 20, 30, 40):
        (tmp_path / step_name(each)).mkdir()
    assert best_step(ROWS, tmp_path, config) == step
    assert best_step([{"step": 10, "train/loss": 1.0}], tmp_path, config) is None


def test_problems() -> None:
    assert CheckpointConfig().problems() == []
    assert CheckpointConfig(every_n_steps=0, best="train/loss").problems() == [
        "checkpoint.every_n_steps=0 must be at least 1",
        "checkpoint.best=train/loss must be a measure's key, such as eval/pope/f1_macro",
    ]
