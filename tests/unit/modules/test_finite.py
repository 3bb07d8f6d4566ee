import math
from typing import Any

import pytest
import torch

from modules.finite import broken_tensor


def state() -> dict[str, Any]:
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.tensor([-1.0, 2.0]), "exp_avg_sq": torch.tensor([0.0, 4.0])}
    return {
        "state_dict": {"a": torch.tensor([-1e38, 1e38]), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.ones(0)},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": math.inf}]}],
        "rng": torch.tensor([255], dtype=torch.uint8),
    }


def test_a_good_state() -> None:
    assert broken_tensor(state()) is None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named(number: float) -> None:
    weights, moments = state(), state()
    weights["state_dict"]["b"][1] = number
    assert broken_tensor(weights) == "state_dict.b"
    moments["optimizer_states"][0]["state"][0]["exp_avg"][0] = number
    assert broken_tensor(moments) == "optimizer_states.0.state.0.exp_avg"


def test_a_mean_of_squares_is_not_negative() -> None:
    odd = state()
    odd["optimizer_states"][0]["state"][0]["exp_avg_sq"][0] = -1e-30
    assert broken_tensor(odd) == "optimizer_states.0.state.0.exp_avg_sq"
