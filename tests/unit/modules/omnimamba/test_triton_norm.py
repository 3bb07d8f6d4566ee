"""Residual, norm and dropout in one pass equal the formula, forward and backward."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

if not os.environ.get("REQUIRE_TRITON"):
    pytest.importorskip("triton", reason="needs triton: pip install '.[triton]'")

from modules.omnimamba.triton_dropout import dropped
from modules.omnimamba.triton_norm import norm_again, norm_backward, norm_forward

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, WIDTH, SEED = 7, 12, 5
"""The width is no power of two."""


def given(residual: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    torch.manual_seed(0)
    x, second = torch.randn(2, ROWS, WIDTH, device=DEVICE)
    return x, second if residual else None, torch.rand(WIDTH, device=DEVICE) + 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("residual", [True, False])
def test_results_are_those_of_the_formula(residual: bool, dropout: float) -> None:
    x, second, weight = given(residual)
    wide = torch.full((ROWS, WIDTH + 3), 7.0, device=DEVICE)
    into = wide[:, :WIDTH]
    total, scale, after = norm_forward(x, second, weight, 1e-5, into_RD=into, dropout=dropout, seed=SEED)
    expected = x if second is None else x + second
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(into, F.rms_norm(expected, (WIDTH,), weight, 1e-5))
    assert (wide[:, WIDTH:] == 7).all()
    torch.testing.assert_close(after, dropped(into, dropout, SEED) if dropout else into)
    again = torch.empty_like(into)
    assert torch.equal(norm_again(total, scale, weight, into_RD=again, dropout=dropout, seed=SEED), after)
    assert torch.equal(again, into)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_gradients_are_those_of_the_formula(residual: bool, dropout: float, added: bool) -> None:
    x, second, weight = given(residual)
    into = torch.empty_like(x)
    total, scale, _ = norm_forward(x, second, weight, 1e-5, into_RD=into, dropout=dropout, seed=SEED)
    dnormed, ddropped, dtotal = torch.randn(3, ROWS, WIDTH, device=DEVICE)
    found = norm_backward(
        total, scale, weight, dnormed, ddropped, dtotal if added else None,
        x_type=torch.float32, has_residual=residual, dropout=dropout, seed=SEED,
    )  # fmt: skip
    mask = dropped(torch.ones_like(x), dropout, SEED) if dropout else torch.ones_like(x)
    leaves = [t.requires_grad_() for t in (x, second, weight) if t is not None]
    whole = x if second is None else x + second
    normed = F.rms_norm(whole, (WIDTH,), weight, 1e-5)
    loss = (normed * dnormed).sum() + (normed * mask * ddropped).sum() + ((whole * dtotal).sum() if added else 0)
    expected = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close([t for t in found if t is not None], list(expected), rtol=1e-4, atol=1e-5)
    assert (found[1] is None) != residual


def test_types_are_those_asked_for() -> None:
    """The sum stays in float32; the norm has the type of where it goes, x's gradient that of x."""
    x, second, weight = given(residual=True)
    into = torch.empty(ROWS, WIDTH, dtype=torch.float16, device=DEVICE)
    total, scale, after = norm_forward(x.half(), second, weight, 1e-5, into_RD=into, dropout=0.4, seed=SEED)
    assert (total.dtype, scale.dtype, after.dtype) == (torch.float32, torch.float32, torch.float16)
    dx, dresidual, _ = norm_backward(
        total, scale, weight, into, into, total, x_type=torch.float16, has_residual=True, dropout=0.4, seed=SEED
    )
    assert dresidual is not None
    assert (dx.dtype, dresidual.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(dx, dresidual.half())
