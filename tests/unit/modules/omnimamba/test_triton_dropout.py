"""Dropout by a counter: the same mask for the same seed, the share that was asked for, and the right gradients."""

import os

import pytest
import torch
from torch.nn import functional as F

from modules.omnimamba.adapters import TaskLoraLinear
from modules.omnimamba.config import TASKS, LoraConfig
from modules.omnimamba.projection import project

if not os.environ.get("REQUIRE_TRITON"):
    pytest.importorskip("triton", reason="needs triton: pip install '.[triton]'")

from modules.omnimamba.triton_dropout import dropped

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_the_share_is_left_out_and_the_mean_is_kept() -> None:
    ones = torch.ones(100, 400, device=DEVICE)
    found = dropped(ones, 0.25, seed=3)
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.01)  # standard error 0.002
    for dim in (0, 1):  # no row and no column is special
        assert float((found == 0).float().mean(dim).std()) == pytest.approx(
            (0.25 * 0.75 / found.shape[dim]) ** 0.5, rel=0.3
        )


def test_a_seed_is_a_mask() -> None:
    x, base = torch.randn(5, 12, device=DEVICE), torch.randn(5, 20, device=DEVICE)
    assert torch.equal(dropped(x, 0.5, 7), dropped(x, 0.5, 7))
    assert not torch.equal(dropped(x, 0.5, 7), dropped(x, 0.5, 8))
    torch.testing.assert_close(dropped(x, 0.5, 7, base[:, :12]), dropped(x, 0.5, 7) + base[:, :12])


def test_gradients_with_dropout_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    made = TaskLoraLinear(8, 10, LoraConfig(rank=2, alpha=6, dropout=0.4)).to(DEVICE)
    x, dy = torch.randn(7, 8, device=DEVICE, requires_grad=True), torch.randn(7, 10, device=DEVICE)
    A, B = ([each[task].weight for task in TASKS] for each in (made.lora_A, made.lora_B))
    torch.manual_seed(5)
    found = project(x, made.weight, A, B, (3, 4), made.lora, training=True)  # type: ignore[arg-type]
    torch.manual_seed(5)
    mask = dropped(torch.ones_like(x), 0.4, int(torch.randint(2**31 - 1, ())))
    low = [(x * mask)[part] @ a.T @ b.T for part, a, b in zip((slice(0, 3), slice(3, 7)), A, B, strict=True)]
    expected = F.linear(x, made.weight) + 3 * torch.cat(low)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    given = [x, *made.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(found, given, dy), torch.autograd.grad(expected, given, dy), rtol=1e-4, atol=1e-5
    )
