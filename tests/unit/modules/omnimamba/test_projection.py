"""The layer and its adapters in one product compute what `TaskLoraLinear` does, forward and backward."""

import weakref

import pytest
import torch
from torch import Tensor

from modules.omnimamba.adapters import Segments, TaskLoraLinear
from modules.omnimamba.config import TASKS, LoraConfig
from modules.omnimamba.projection import project, recomputed


def layer(trained: bool) -> TaskLoraLinear:
    torch.manual_seed(0)
    made = TaskLoraLinear(8, 10, LoraConfig(rank=2, alpha=6, dropout=0.0))
    made.weight.requires_grad = trained
    return made


def both(made: TaskLoraLinear) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A and B of both tasks."""
    return tuple(tuple(each[task].weight for task in TASKS) for each in (made.lora_A, made.lora_B))  # type: ignore[return-value]


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("segments", [(3, 4), (7, 0), (0, 7)])
def test_outputs_and_gradients_are_those_of_the_plain_layer(segments: Segments, trained: bool) -> None:
    made = layer(trained).double()
    x, dy = torch.randn(7, 8, dtype=torch.float64, requires_grad=True), torch.randn(7, 10, dtype=torch.float64)
    given = [x, *(parameter for parameter in made.parameters() if parameter.requires_grad)]
    assert len(given) == (6 if trained else 5)
    plain = made(x[None], segments)[0]
    fused = project(x, made.weight, *both(made), segments, made.lora, training=True)  # type: ignore[arg-type]
    torch.testing.assert_close(fused, plain)
    # a task without positions has a gradient of zero in both: every rank reduces the same
    torch.testing.assert_close(torch.autograd.grad(fused, given, dy), torch.autograd.grad(plain, given, dy))


def test_without_gradients_and_dropout_nothing_is_drawn() -> None:
    made = layer(trained=True).eval()
    state = torch.get_rng_state()
    project(torch.ones(7, 8), made.weight, *both(made), (3, 4), made.lora, training=False)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_output_can_be_computed_again_instead_of_kept() -> None:
    made = layer(trained=True).double()
    x = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    given = [x, *made.parameters()]

    def output() -> Tensor:
        return project(x, made.weight, *both(made), (3, 4), made.lora, training=True)  # type: ignore[arg-type]

    expected = torch.autograd.grad((output() ** 3).sum(), given)
    y = output()
    with recomputed(y):
        loss = (y.view(7, 5, 2) ** 3 + (x.sum() ** 2)).sum()
    kept = weakref.ref(y)
    del y
    assert kept() is None
    loss = loss - 70 * x.sum() ** 2  # what was kept as usual
    torch.testing.assert_close(torch.autograd.grad(loss, given), expected)


def test_of_other_outputs_nothing_changes() -> None:
    x = torch.randn(7, requires_grad=True)
    y = x * 2
    with recomputed(y):
        loss = (y**2).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], 8 * x)
