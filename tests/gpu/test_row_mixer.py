"""The mixer for rows of many short sequences against the mixer on mamba_ssm's kernels, on a GPU."""

import pytest
import torch

from modules.omnimamba.adapters import Segments
from modules.omnimamba.backbone import Block
from modules.omnimamba.config import LoraConfig, ModelConfig
from modules.omnimamba.row_mixer import layout_of
from modules.omnimamba.rows import sequence_ids

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

CONFIG = ModelConfig(d_model=256, adapters=LoraConfig(dropout=0.0))
ROWS = {"short": [329, 329, 1, 64, 65, 200], "mixed": [1182, 329, 5, 128]}
GPU = torch.device("cuda")


def results(lengths: list[int], scan: str, compute: torch.dtype, frozen: bool = False) -> dict[str, torch.Tensor]:
    """Outputs and gradients of one block with published sizes of heads and states."""
    torch.manual_seed(0)
    block = Block(CONFIG).cuda()
    for name, parameter in block.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
        parameter.requires_grad = not (frozen and name == "mixer.out_proj.weight")
    with torch.no_grad():
        block.mixer.dt_bias.uniform_(-6, -2)
        block.mixer.A_log.uniform_(0, 2.7)
    u = torch.randn(1, sum(lengths), CONFIG.d_model, device=GPU, requires_grad=True)
    segments: Segments = (lengths[0], sum(lengths[1:]))
    layout = layout_of(lengths, CONFIG, scan, compute, GPU)  # type: ignore[arg-type]
    assert (layout is not None) == (scan == "rows")
    with torch.autocast("cuda", compute, enabled=compute != torch.float32):
        y, residual = block(u, None, segments, sequence_ids(lengths, GPU)[None], layout=layout)
    torch.manual_seed(1)
    ((y.float() + 0 * residual) * torch.randn_like(u)).sum().backward()
    found = {name: parameter.grad for name, parameter in block.named_parameters() if parameter.grad is not None}
    assert u.grad is not None
    return {"output": y.float().detach(), "input": u.grad, **found}


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
def test_it_is_as_close_to_float32_as_mamba_ssm(lengths: list[int]) -> None:
    exact = results(lengths, "mamba_ssm", torch.float32)
    rounded, ours = (results(lengths, scan, torch.bfloat16) for scan in ("mamba_ssm", "rows"))
    assert ours.keys() == exact.keys()
    for name, truth in exact.items():
        plain, found = (float((each[name] - truth).norm() / truth.norm()) for each in (rounded, ours))
        # both round to eight bits, but not at the same places
        assert found <= 1.5 * plain + 2e-3, f"{name}: {found:.1e}, mamba_ssm {plain:.1e}"


def test_two_runs_are_equal_to_the_bit() -> None:
    first, second = (results(ROWS["mixed"], "rows", torch.bfloat16) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_frozen_projection_gets_no_gradient() -> None:
    """All others are the same."""
    trained, frozen = (results(ROWS["short"], "rows", torch.bfloat16, each) for each in (False, True))
    assert trained.keys() - frozen.keys() == {"mixer.out_proj.weight"}
    for name, value in frozen.items():
        torch.testing.assert_close(value, trained[name])
