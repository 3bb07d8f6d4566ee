"""The Triton scan equals the reference in float64: outputs and every gradient, for rows of any sequences."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.omnimamba.ssd import ssd_chunked

if not os.environ.get("REQUIRE_TRITON"):
    pytest.importorskip("triton", reason="needs triton: pip install '.[triton]'")

from modules.omnimamba.triton_ssd import CHUNK, Layout, scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ("x", "dt", "dt_bias", "A", "B", "C", "D")
ROWS = {"one position": [1], "one sequence": [150], "around a chunk": [63, 64, 65], "many": [1, 40, 7, 129, 2]}


def inputs(lengths: list[int], heads: int, size: int, width: int) -> list[Tensor]:
    """Float64 inputs; decays from slow to fast. A decay is a difference of running sums."""
    torch.manual_seed(sum(lengths))
    rows = sum(lengths)
    x, B, C = torch.randn(rows, heads, size), torch.randn(rows, width), torch.randn(rows, width)
    dt, bias = torch.randn(rows, heads), torch.linspace(-4, 0, heads)
    A = -torch.logspace(-1, 0.5, heads)
    return [t.double() for t in (x, dt, bias, A, B, C, torch.randn(heads))]


def reference(
    lengths: list[int], x: Tensor, dt: Tensor, bias: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """The scan of each sequence on its own."""
    parts = []
    for x_i, dt_i, B_i, C_i in zip(*(t.split(lengths) for t in (x, dt, B, C)), strict=True):
        y, _ = ssd_chunked(x_i[None], F.softplus(dt_i + bias)[None], A, B_i[None], C_i[None], CHUNK)
        parts.append(y[0] + D[:, None] * x_i)
    return torch.cat(parts)


def results(y: Tensor, given: list[Tensor], dy: Tensor) -> list[Tensor]:
    """The outputs, and the gradients of what was given."""
    return [y.detach(), *torch.autograd.grad(y, given, dy)]


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("heads", "size", "width"), [(2, 16, 16), (3, 16, 32)])
def test_outputs_and_gradients_are_those_of_the_reference(
    lengths: list[int], heads: int, size: int, width: int
) -> None:
    exact = [t.requires_grad_() for t in inputs(lengths, heads, size, width)]
    single = [t.detach().float().requires_grad_() for t in exact]
    dy = torch.randn(sum(lengths), heads, size)
    expected = results(reference(lengths, *exact), exact, dy.double())
    rounded = results(reference(lengths, *single), single, dy)
    given = [t.detach().to(DEVICE).requires_grad_() for t in single]
    found = results(scan(*given, Layout.of(lengths, DEVICE)), given, dy.to(DEVICE))
    for name, one, plain, other in zip(("y", *NAMES), found, rounded, expected, strict=True):
        error, limit = (
            float((t.cpu().double() - other).abs().max() / (other.abs().max() + 1e-9)) for t in (one, plain)
        )
        # about as exact as the reference in the same precision; some sums of a chunk's 64 terms cancel
        assert error <= max(4 * limit, 1e-5), f"{name}: {error:.2e}, the reference {limit:.2e}"


def test_half_precision_stays_near() -> None:
    """As in training, where x, B and C have 16 bits; the interpreter multiplies bf16 wrongly, so float16 stands in."""
    lengths = [70, 20]
    exact = [t.requires_grad_() for t in inputs(lengths, 2, 16, 16)]
    dy = torch.randn(sum(lengths), 2, 16)
    expected = results(reference(lengths, *exact), exact, dy.double())
    halves = ("x", "B", "C")
    given = [
        t.detach().to(DEVICE, torch.half if name in halves else torch.float32)
        for name, t in zip(NAMES, exact, strict=True)
    ]
    found = results(scan(*[t.requires_grad_() for t in given], Layout.of(lengths, DEVICE)), given, dy.to(DEVICE).half())
    for name, one, other in zip(("y", *NAMES), found, expected, strict=True):
        # float16 has 11 bits; a result is a sum of some hundred products
        assert (one.cpu().double() - other).abs().max() <= 0.01 * other.abs().max(), name


def test_no_sequence_sees_another() -> None:
    lengths = [30, 100, 3]
    given = [t.float().to(DEVICE) for t in inputs(lengths, 2, 16, 16)]
    whole = scan(*given, Layout.of(lengths, DEVICE))
    x, dt, bias, A, B, C, D = given
    alone = [
        scan(x_i.contiguous(), dt_i, bias, A, B_i, C_i, D, Layout.of([len(x_i)], DEVICE))
        for x_i, dt_i, B_i, C_i in zip(*(t.split(lengths) for t in (x, dt, B, C)), strict=True)
    ]
    assert torch.equal(whole, torch.cat(alone))


def test_it_reads_parts_of_wider_rows() -> None:
    """As in training, where x, B and C are columns of one tensor, and dt of another."""
    lengths = [70, 20]
    x, dt, bias, A, B, C, D = (t.float().to(DEVICE) for t in inputs(lengths, 2, 16, 16))
    layout = Layout.of(lengths, DEVICE)
    joined = torch.cat([x.flatten(1), B, C, torch.ones(90, 5, device=DEVICE), dt], dim=1).requires_grad_()
    x_part, B_part, C_part, _, dt_part = joined.split([32, 16, 16, 5, 2], dim=1)
    y = scan(x_part.view(90, 2, 16), dt_part, bias, A, B_part, C_part, D, layout)
    assert torch.equal(y, scan(x, dt, bias, A, B, C, D, layout))
    y.square().sum().backward()
    assert joined.grad is not None
    apart = [t.requires_grad_() for t in (x, dt, B, C)]
    scan(x, dt, bias, A, B, C, D, layout).square().sum().backward()
    dx, ddt, dB, dC = (t.grad for t in apart)
    assert dx is not None
    assert torch.equal(joined.grad, torch.cat([dx.flatten(1), dB, dC, torch.zeros(90, 5, device=DEVICE), ddt], dim=1))  # type: ignore[list-item]
