"""The three forms of the scan agree: chunked, recurrent, one step at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.omnimamba.ssd import causal_conv, ssd_chunked, ssd_step


def ssd_recurrent(
    x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLN: Tensor, C_BLN: Tensor, seq_idx_BL: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, position by position."""
    batch, length, heads, size = x_BLHP.shape
    state = x_BLHP.new_zeros(batch, heads, size, B_BLN.shape[-1])
    outputs = []
    for t in range(length):
        if seq_idx_BL is not None and t:
            state = state * (seq_idx_BL[:, t] == seq_idx_BL[:, t - 1])[:, None, None, None]
        y, state = ssd_step(x_BLHP[:, t], dt_BLH[:, t], A_H, B_BLN[:, t], C_BLN[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def inputs(batch: int, length: int, heads: int = 3, size: int = 4, state: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [
        draw(batch, length, heads, size),
        F.softplus(draw(batch, length, heads)),
        -draw(heads).exp(),
        draw(batch, length, state),
        draw(batch, length, state),
    ]


# below, at, above and far from a multiple of the chunk
@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
def test_chunked_equals_recurrent(length: int) -> None:
    given = inputs(2, length)
    chunked, recurrent = ssd_chunked(*given, 8), ssd_recurrent(*given)
    torch.testing.assert_close(chunked[0], recurrent[0])
    torch.testing.assert_close(chunked[1], recurrent[1])


def test_closed_form_of_one_head() -> None:
    """With A = 0 nothing is forgotten: the output is a running sum."""
    x, dt, _, B, C = inputs(1, 10, heads=1, size=1, state=1)
    y, _ = ssd_chunked(x, dt, torch.zeros(1, dtype=torch.float64), B, C, 4)
    expected = C[0, :, 0] * (dt[0, :, 0] * x[0, :, 0, 0] * B[0, :, 0]).cumsum(0)
    torch.testing.assert_close(y[0, :, 0, 0], expected)


# boundaries inside chunks, at a chunk's edge, several in one chunk, and a sequence over several chunks
@pytest.mark.parametrize("lengths", [(5, 9, 6), (8, 8), (1, 1, 1, 1), (3, 20, 2), (30,)])
def test_sequences_in_one_row_do_not_see_each_other(lengths: tuple[int, ...]) -> None:
    x, dt, A, B, C = inputs(1, sum(lengths))
    ids = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    together, last = ssd_chunked(x, dt, A, B, C, 8, ids)
    apart = [ssd_recurrent(*parts) for parts in _split(lengths, x, dt, A, B, C)]
    torch.testing.assert_close(together, torch.cat([y for y, _ in apart], dim=1))
    torch.testing.assert_close(last, apart[-1][1])
    torch.testing.assert_close(ssd_recurrent(x, dt, A, B, C, ids)[0], together)


def test_gradients_of_a_row_equal_those_apart() -> None:
    lengths = (5, 9, 6)
    given = [t.requires_grad_() for t in inputs(1, sum(lengths))]
    ids = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    together = torch.autograd.grad(ssd_chunked(*given, 8, ids)[0].square().sum(), given)
    apart = torch.autograd.grad(
        sum(ssd_recurrent(*parts)[0].square().sum() for parts in _split(lengths, *given)), given
    )
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_continues_from_the_state_of_a_sequence() -> None:
    x, dt, A, B, C = given = inputs(2, 20)
    whole, last = ssd_chunked(*given, 8)
    _, state = ssd_chunked(x[:, :13], dt[:, :13], A, B[:, :13], C[:, :13], 8)
    for t in range(13, 20):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(state, last)


def test_conv_equals_torch_and_stops_at_sequence_boundaries() -> None:
    conv = torch.nn.Conv1d(6, 6, 4, groups=6, dtype=torch.float64)
    x = torch.randn(1, 12, 6, dtype=torch.float64)
    assert conv.bias is not None
    expected = conv(F.pad(x.transpose(1, 2), (3, 0))).transpose(1, 2)
    torch.testing.assert_close(causal_conv(x, conv.weight[:, 0], conv.bias), expected)
    ids = torch.tensor([[0] * 5 + [1] * 2 + [2] * 5])
    apart = [causal_conv(part, conv.weight[:, 0], conv.bias) for part in x.split([5, 2, 5], dim=1)]
    torch.testing.assert_close(causal_conv(x, conv.weight[:, 0], conv.bias, ids), torch.cat(apart, dim=1))


def _split(lengths: tuple[int, ...], x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> list[list[Tensor]]:
    parts = [t.split(lengths, dim=1) for t in (x, dt, B, C)]
    return [[x, dt, A, B, C] for x, dt, B, C in zip(*parts, strict=True)]
