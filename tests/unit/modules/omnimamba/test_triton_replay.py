"""Positions one by one, with a state that is written at every 16th, equal the plain recurrence."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.omnimamba.ssd import ssd_step

if not os.environ.get("REQUIRE_TRITON"):
    pytest.importorskip("triton", reason="needs triton: pip install '.[triton]'")

from modules.omnimamba.triton_replay import KEPT, PART, Recent, advance, replay_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, HEADS, SIZE, WIDTH, LENGTH = 2, 2, 2 * PART, 16, KEPT + 5


def inputs() -> tuple[list[Tensor], list[Tensor]]:
    """Per position x, dt, B and C; and bias, A, D and the state of a prompt. Float64."""
    torch.manual_seed(0)
    shapes = ((BATCH, HEADS, SIZE), (BATCH, HEADS), (BATCH, WIDTH), (BATCH, WIDTH))
    positions = [torch.randn(LENGTH, *shape).double() for shape in shapes]
    bias, A, D = torch.tensor([-9.0, 0.0]), -torch.tensor([0.1, 3.0]), torch.randn(HEADS)
    return positions, [t.double() for t in (bias, A, D, torch.randn(BATCH, HEADS, SIZE, WIDTH))]


def recurrence(positions: list[Tensor], fixed: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs (LENGTH, B, H, P), and the state after each position."""
    bias, A, D, state = fixed
    outputs, states = [], []
    for x, dt, B, C in zip(*positions, strict=True):
        y, state = ssd_step(x, F.softplus(dt + bias), A, B, C, state)
        outputs.append(y + D[:, None] * x)
        states.append(state)
    return torch.stack(outputs), states


def replayed(
    positions: list[Tensor], fixed: list[Tensor], kept: torch.dtype, states: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Outputs, and the state that was written last."""
    x, dt, B, C = (t.to(DEVICE, kept) for t in positions)
    bias, A, D = (t.to(DEVICE, torch.float32) for t in fixed[:3])
    state = fixed[3].to(DEVICE, states)
    recent = Recent.empty(BATCH, HEADS, SIZE, WIDTH, kept, DEVICE)
    outputs = []
    for i in range(LENGTH):
        write = i % KEPT == KEPT - 1
        outputs.append(replay_step(x[i], dt[i], bias, A, B[i], C[i], D, state, recent, write=write))
        advance(recent)
    assert int(recent.count) == LENGTH % KEPT
    return torch.stack(outputs).cpu().double(), state.cpu().double()


def test_outputs_and_states_are_those_of_the_recurrence() -> None:
    positions, fixed = inputs()
    expected, states = recurrence(positions, fixed)
    found, state = replayed(positions, fixed, torch.float32, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    written = LENGTH // KEPT * KEPT - 1
    torch.testing.assert_close(state, states[written], rtol=1e-4, atol=2e-5)


def test_a_state_in_half_precision_is_rounded_as_often_as_it_is_written() -> None:
    """float16 stands for bf16, which the interpreter multiplies wrongly."""
    positions, fixed = inputs()
    expected, states = recurrence(positions, fixed)
    found, state = replayed(positions, fixed, torch.float32, torch.float16)
    assert float((found - expected).abs().max()) < 0.01 * float(expected.abs().max())
    torch.testing.assert_close(state, states[LENGTH // KEPT * KEPT - 1], rtol=3e-3, atol=3e-3)


def test_inputs_in_half_precision_stay_near() -> None:
    positions, fixed = inputs()
    rounded = [t.half().double() for t in positions]
    expected, _ = recurrence(rounded, fixed)
    found, _ = replayed(positions, fixed, torch.float16, torch.float32)
    assert float((found - expected).abs().max()) < 0.002 * float(expected.abs().max())


def test_it_reads_parts_of_wider_rows() -> None:
    """As after the convolution: x, B and C are columns of one tensor, and dt of another."""
    positions, fixed = inputs()
    x, dt, B, C = (t[0].float().to(DEVICE) for t in positions)
    bias, A, D, state = (t.float().to(DEVICE) for t in fixed)
    joined = torch.cat([x.flatten(1), B, C], dim=1)
    x_part, B_part, C_part = joined.split([HEADS * SIZE, WIDTH, WIDTH], dim=1)
    dt_part = torch.cat([torch.ones(BATCH, 5, device=DEVICE), dt], dim=1)[:, 5:]
    found = []
    for given in ((x_part.view(BATCH, HEADS, SIZE), dt_part, B_part, C_part), (x, dt, B, C)):
        recent = Recent.empty(BATCH, HEADS, SIZE, WIDTH, torch.float32, DEVICE)
        x_i, dt_i, B_i, C_i = given
        found.append(replay_step(x_i, dt_i, bias, A, B_i, C_i, D, state, recent, write=False))
    assert torch.equal(*found)
