"""The convolution over a row equals the plain one, forward and backward."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.omnimamba.rows import sequence_ids
from modules.omnimamba.ssd import causal_conv

if not os.environ.get("REQUIRE_TRITON"):
    pytest.importorskip("triton", reason="needs triton: pip install '.[triton]'")

from modules.omnimamba.triton_conv import LOOPS, ROWS, conv_backward, conv_forward

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = {"one position": [1], "shorter than what an output sees": [2, 1, 3, 4, 5], "tiles": [33, 70, 5]}


def within(lengths: list[int]) -> Tensor:
    """Each position's place in its sequence."""
    return torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths]).to(DEVICE)


def inputs(rows: int, channels: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    wide = torch.randn(rows, channels + 6, device=DEVICE)
    weight, bias = torch.randn(channels, 4, device=DEVICE), torch.randn(channels, device=DEVICE)
    return wide[:, 3 : 3 + channels], weight, bias, torch.randn(rows, channels, device=DEVICE)


def plain(x: Tensor, weight: Tensor, bias: Tensor, lengths: list[int]) -> Tensor:
    return F.silu(causal_conv(x[None], weight, bias, sequence_ids(lengths, DEVICE)[None]))[0]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_outputs_and_gradients_are_those_of_the_plain_one(lengths: list[int]) -> None:
    x, weight, bias, dy = inputs(sum(lengths))
    places = within(lengths)
    torch.testing.assert_close(conv_forward(x, weight, bias, places), plain(x, weight, bias, lengths))
    wide = torch.full((sum(lengths), 16), 7.0, device=DEVICE)
    found = conv_backward(dy, x, weight, bias, places, into_RC=wide[:, 3:13])
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(plain(*leaves, lengths), leaves, dy)
    torch.testing.assert_close([wide[:, 3:13], *found], list(expected), rtol=1e-4, atol=1e-5)
    assert (wide[:, :3] == 7).all()
    assert (wide[:, 13:] == 7).all()


def test_programs_add_up() -> None:
    """The weights' gradients are sums over several programs of several tiles each."""
    lengths = [ROWS * LOOPS - 1, 40]
    x, weight, bias, dy = inputs(sum(lengths), channels=3)
    into = torch.empty_like(dy)
    found = conv_backward(dy, x, weight, bias, within(lengths), into_RC=into)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(plain(*leaves, lengths), leaves, dy)
    torch.testing.assert_close([into, *found], list(expected), rtol=1e-4, atol=1e-4)
