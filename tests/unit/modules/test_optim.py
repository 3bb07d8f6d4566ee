"""Schedule and parameter groups."""

import math

import pytest
import torch

from modules.omnimamba.model import OmniMamba
from modules.optim import OptimConfig, build_optimizer, lr_factor
from tests.unit.modules.omnimamba.conftest import TINY


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    config = OptimConfig(warmup_steps=4)
    assert [lr_factor(step, config=config, max_steps=100) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_goes_down_to_the_floor() -> None:
    config = OptimConfig(warmup_steps=10, min_lr_ratio=0.01)
    factors = [lr_factor(step, config=config, max_steps=110) for step in range(10, 111)]
    assert factors == sorted(factors, reverse=True)
    assert factors[50] == pytest.approx(0.01 + 0.99 / 2)  # half-way: the cosine is 0
    assert factors[25] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2)
    assert factors[-1] == pytest.approx(0.01)
    assert lr_factor(500, config=config, max_steps=110) == pytest.approx(0.01)


def test_decay_spares_the_state_space_parameters_norms_and_biases() -> None:
    model = OmniMamba(TINY)
    optimizer, _ = build_optimizer(model, OptimConfig(weight_decay=0.1), 10)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {group["name"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"decay": 0.1, "no_decay": 0.0}
    for name in names.values():
        spared = name.endswith(("A_log", ".D", "dt_bias", "bias", "positions")) or "norm" in name
        assert name in groups["no_decay" if spared else "decay"], name
    assert sum(map(len, groups.values())) == len(names)


def test_frozen_parameters_are_left_out() -> None:
    model = OmniMamba(TINY).requires_grad_(False)
    model.projector.requires_grad_(True)
    optimizer, _ = build_optimizer(model, OptimConfig(), 10)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.projector.parameters()}


def test_decayed_weights_shrink_and_spared_ones_stay_without_a_gradient() -> None:
    model = OmniMamba(TINY)
    optimizer, _ = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5), 10)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    name = "backbone.layers.0.mixer."
    after = dict(model.named_parameters())
    torch.testing.assert_close(after[name + "out_proj.weight"], before[name + "out_proj.weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(after[name + "A_log"], before[name + "A_log"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "optim.lr=0.0 must be above 0"),
        ({"weight_decay": -1.0}, "optim.weight_decay=-1.0 must be 0 or more"),
        ({"warmup_steps": -1}, "optim.warmup_steps=-1 must be 0 or more"),
        ({"min_lr_ratio": 2.0}, "optim.min_lr_ratio=2.0 must lie in [0, 1]"),
    ],
)
def test_broken_rules(change: dict[str, float], message: str) -> None:
    (problem,) = OptimConfig(**change).problems()
    assert problem.startswith(message)
