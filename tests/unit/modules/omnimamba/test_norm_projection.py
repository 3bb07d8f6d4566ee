"""Norm and projection in one function compute what they do one after the other, forward and backward."""

import os

import pytest
import torch
from torch import Tensor

from modules.omnimamba.adapters import Segments, TaskLoraLinear
from modules.omnimamba.backbone import add_norm
from modules.omnimamba.config import TASKS, LoraConfig
from modules.omnimamba.mixer import RMSNorm

if not os.environ.get("REQUIRE_TRITON"):
    pytest.importorskip("triton", reason="needs triton: pip install '.[triton]'")

from modules.omnimamba.norm_projection import norm_project
from modules.omnimamba.triton_dropout import dropped

ROWS, WIDTH, EPS = 7, 8, 1e-5


def parts(dropout: float, trained: bool = True) -> tuple[TaskLoraLinear, RMSNorm]:
    torch.manual_seed(0)
    layer, norm = TaskLoraLinear(WIDTH, 10, LoraConfig(rank=2, alpha=6, dropout=dropout)), RMSNorm(WIDTH, EPS)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    layer.weight.requires_grad = trained
    return layer, norm


def fused(
    x: Tensor, residual: Tensor | None, layer: TaskLoraLinear, norm: RMSNorm, segments: Segments
) -> tuple[Tensor, Tensor]:
    A, B = (tuple(each[task].weight for task in TASKS) for each in (layer.lora_A, layer.lora_B))
    assert layer.lora is not None
    return norm_project(
        x, residual, norm.weight, layer.weight, A, B,  # type: ignore[arg-type]
        eps=EPS, segments=segments, lora=layer.lora, training=True,
    )  # fmt: skip


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("segments", [(3, 4), (7, 0), (0, 7)])
@pytest.mark.parametrize("first", [True, False], ids=["first block", "later block"])
def test_results_and_gradients_are_those_of_the_parts(first: bool, segments: Segments, trained: bool) -> None:
    layer, norm = parts(dropout=0.0, trained=trained)
    x, residual = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(ROWS, WIDTH, requires_grad=True)
    second = None if first else residual
    normed, total = add_norm(norm, x[None], None if second is None else second[None])
    plain = layer(normed, segments)[0], total[0]
    found = fused(x, second, layer, norm, segments)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    leaves = [x, *([] if first else [residual]), norm.weight, *(p for p in layer.parameters() if p.requires_grad)]
    dy, dtotal = torch.randn(ROWS, 10), torch.randn(ROWS, WIDTH)
    gradients = [torch.autograd.grad((y * dy).sum() + (t * dtotal).sum(), leaves) for y, t in (found, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_with_dropout_the_gradients_are_those_of_the_mask() -> None:
    layer, norm = parts(dropout=0.4)
    x, residual = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(ROWS, WIDTH, requires_grad=True)
    torch.manual_seed(5)
    y, total = fused(x, residual, layer, norm, (3, 4))
    torch.manual_seed(5)
    mask = dropped(torch.ones_like(x), 0.4, int(torch.randint(2**31 - 1, ())))
    normed = norm(x + residual)
    low = [
        (normed * mask)[rows] @ layer.lora_A[task].weight.T @ layer.lora_B[task].weight.T
        for task, rows in zip(TASKS, (slice(0, 3), slice(3, 7)), strict=True)
    ]
    expected = normed @ layer.weight.T + 3 * torch.cat(low)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    leaves = [x, residual, norm.weight, *layer.parameters()]
    dy = torch.randn(ROWS, 10)
    torch.testing.assert_close(
        torch.autograd.grad((y * dy).sum() + total.sum(), leaves),
        torch.autograd.grad((expected * dy).sum() + (x + residual).sum(), leaves),
        rtol=1e-4,
        atol=1e-5,
    )


def test_types_under_autocast() -> None:
    """A first block's input is in float32, as embeddings are; what is kept of it is the sum alone."""
    layer, norm = parts(dropout=0.0)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        y, total = fused(x, None, layer, norm, (3, 4))
        plain = layer(add_norm(norm, x[None], None)[0], (3, 4))[0]
    assert (y.dtype, total.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(y, plain, rtol=0.01, atol=0.01)
    (y.float().sum() + total.sum()).backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
