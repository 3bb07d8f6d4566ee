"""The mixer for rows of short sequences computes what the plain one does.

causal_conv1d's and mamba_ssm's functions need a GPU; here their formulas in plain torch stand for them.
"""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.omnimamba import kernels
from modules.omnimamba.adapters import TaskLoraLinear
from modules.omnimamba.backbone import Backbone, Block, Recompute
from modules.omnimamba.config import LoraConfig
from modules.omnimamba.projection import Again
from modules.omnimamba.rows import concatenated, sequence_ids
from modules.omnimamba.ssd import causal_conv

from .conftest import TINY

if not os.environ.get("REQUIRE_TRITON"):
    pytest.importorskip("triton", reason="needs triton: pip install '.[triton]'")

from modules.omnimamba.triton_ssd import Layout

CPU = torch.device("cpu")
CONFIG = replace(TINY, d_model=32, d_state=16, headdim=16, adapters=LoraConfig(rank=2, alpha=4, dropout=0.0))
LENGTHS = [70, 5, 20]


def conv(x_1CR: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor) -> Tensor:
    """Convolution and SiLU."""
    return F.silu(causal_conv(x_1CR.transpose(1, 2).float(), weight, bias, seq_idx)).transpose(1, 2)


def conv_backward(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, seq: Tensor, *rest: Any) -> tuple[Any, ...]:
    given = [t.detach().float().requires_grad_() for t in (x, weight, bias)]
    with torch.enable_grad():
        found = torch.autograd.grad(conv(*given, seq), given, dy.float())
    rest[2].copy_(found[0])
    return (*found, None)


def norm(y: Tensor, weight: Tensor, eps: float, z: Tensor) -> Tensor:
    """The norm of the gated outputs."""
    return F.rms_norm(y.float() * F.silu(z.float()), weight.shape, weight, eps)


def norm_backward(
    dn: Tensor, y: Tensor, weight: Tensor, _b: None, eps: float, _m: None, _r: Tensor, **named: Any
) -> Any:
    given = [t.detach().float().requires_grad_() for t in (y, weight, named["z"])]
    with torch.enable_grad():
        out = norm(given[0], given[1], eps, given[2])
        dy, dweight, dz = torch.autograd.grad(out, given, dn.float())
    named["dz"].copy_(dz)
    recomputed = (out.detach().to(y.dtype),) if named["recompute_output"] else ()
    return (dy.to(y.dtype), dweight, None, named["dz"], *recomputed)


@pytest.fixture(autouse=True)
def formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    class Formulas:
        @staticmethod
        def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, seq: Tensor, *rest: Any) -> Tensor:
            # neighbouring channels stay next to each other in memory, as the kernel leaves them
            return conv(x, weight, bias, seq).to(x.dtype).transpose(1, 2).contiguous().transpose(1, 2)

        @staticmethod
        def gated_norm_forward(y: Tensor, weight: Tensor, bias: None, eps: float, *, z: Tensor, **rest: Any) -> Any:
            return norm(y, weight, eps, z).to(y.dtype), None, torch.ones(len(y))

    Formulas.conv_backward = staticmethod(conv_backward)  # type: ignore[attr-defined]
    Formulas.gated_norm_backward = staticmethod(norm_backward)  # type: ignore[attr-defined]
    monkeypatch.setattr(kernels, "load", lambda: Formulas)


def block(frozen: bool = False) -> Block:
    torch.manual_seed(0)
    made = Block(CONFIG)
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        parameter.requires_grad = not (frozen and name == "mixer.out_proj.weight")
    return made


def results(made: Block, layout: Layout | None) -> dict[str, Tensor]:
    torch.manual_seed(1)
    u = torch.randn(1, sum(LENGTHS), CONFIG.d_model, requires_grad=True)
    y, residual = made(u, None, (70, 25), sequence_ids(LENGTHS, CPU)[None], layout=layout)
    ((y.float() + residual) * torch.randn_like(u)).sum().backward()
    assert u.grad is not None
    grads = {name: parameter.grad for name, parameter in made.named_parameters() if parameter.grad is not None}
    return {"output": y.detach(), "input": u.grad, **grads}


def projected(self: TaskLoraLinear, x_BLD: Tensor, segments: tuple[int, int]) -> Tensor:
    """As on a GPU."""
    assert self.lora is not None
    return self._project(x_BLD[0], self.lora, segments)[None]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_block_computes_what_the_plain_one_does(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = results(block(frozen), None)
    monkeypatch.setattr(TaskLoraLinear, "forward", projected)
    found = results(block(frozen), Layout.of(LENGTHS, CPU))
    assert found.keys() == plain.keys()
    assert ("mixer.out_proj.weight" in found) != frozen
    for name, value in plain.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name


def test_types_are_those_of_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, where a first block gets float32. The interpreter multiplies bf16 wrongly: float16 stands in."""
    with torch.autocast("cpu", torch.float16):
        plain = results(block(), None)
        monkeypatch.setattr(TaskLoraLinear, "forward", projected)
        found = results(block(), Layout.of(LENGTHS, CPU))
    for name, value in plain.items():
        assert found[name].dtype == value.dtype, name
        assert (found[name].float() - value.float()).norm() <= 0.02 * value.float().norm() + 1e-3, name


def trained(level: Recompute, dropout: float) -> dict[str, Tensor]:
    """Two blocks, with what the backward pass computes again."""
    torch.manual_seed(0)
    made = Backbone(replace(CONFIG, n_layer=2, adapters=LoraConfig(rank=2, alpha=4, dropout=dropout)))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    made.choose(scan="auto", projection="fused", recompute=level)
    torch.manual_seed(1)
    lengths = [9, 4]  # the interpreter draws masks slowly
    u = torch.randn(1, sum(lengths), CONFIG.d_model, requires_grad=True)
    y = made(u, (9, 4), sequence_ids(lengths, CPU)[None], layout=Layout.of(lengths, CPU))
    (y * torch.randn_like(u)).sum().backward()
    assert u.grad is not None
    grads = {name: parameter.grad for name, parameter in made.named_parameters() if parameter.grad is not None}
    return {"output": y.detach(), "input": u.grad, **grads}


@pytest.mark.parametrize(("level", "again"), [("projection", 2), ("block", 0)])
def test_what_is_computed_again_is_equal_to_the_bit(
    level: Recompute, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, whose mask is drawn again."""
    monkeypatch.setattr(TaskLoraLinear, "forward", projected)
    kept = trained("none", dropout=0.3)
    computed: list[None] = []
    compute = Again.compute
    monkeypatch.setattr(Again, "compute", lambda this: computed.append(None) or compute(this))
    found = trained(level, dropout=0.3)
    assert len(computed) == again
    assert found.keys() == kept.keys()
    for name, value in kept.items():
        assert torch.equal(found[name], value), name


def test_tables_are_made_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        layout, ids = Layout.of([3, 70, 9], CPU), sequence_ids([3, 70, 9], CPU)
        places = concatenated(torch.zeros(2, 5, 4, device="cpu"), [5, 3])
    tensors = (layout.starts_S2, layout.groups[0].below, ids, places)
    assert [each.device.type for each in tensors] == ["cpu"] * 4
    assert layout.starts_S2.tolist() == [0, 0, 3, 1, 73, 3, 82, 4]
    assert [group.chunks.tolist() for group in layout.groups] == [[1], [0, 2, 3]]
