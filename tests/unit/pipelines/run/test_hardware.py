"""How many threads a run computes with, when its bits may differ, and kernels that cannot be used."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from modules.omnimamba.config import ModelConfig
from pipelines.run.hardware import HardwareConfig, kernel_problems, other_arithmetic, use_threads

CAPABILITY = torch.backends.cpu.get_cpu_capability()


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("given", "before", "used", "said"),
    [
        ({}, 0, 2, []),
        ({}, 1, 1, ["1 CPU threads per process, as before (hardware.threads)"]),
        ({}, 2, 2, []),
        ({"threads": 3}, 1, 3, []),
        ({"threads": 3, "devices": 2}, 0, 3, []),
        ({"accelerator": "gpu"}, 1, 2, []),
    ],
)
def test_a_run_keeps_its_threads_unless_another_number_is_given(
    given: dict[str, object], before: int, used: int, said: list[str]
) -> None:
    reported: list[str] = []
    use_threads(HardwareConfig(**given), before, reported.append)  # type: ignore[arg-type]
    assert torch.get_num_threads() == used
    assert os.environ["OMP_NUM_THREADS"] == str(used)  # or Lightning would set another number
    assert reported == said


def test_without_a_number_the_ranks_of_a_node_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    use_threads(HardwareConfig(devices=4), 0, pytest.fail)
    assert torch.get_num_threads() == 3
    use_threads(HardwareConfig(devices=24), 0, pytest.fail)  # the first call has set the variable
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("threads", "capability", "said"),
    [
        (2, CAPABILITY, ""),
        (0, "", ""),
        (4, CAPABILITY, "(CPU threads: 4 before, 2 now)"),
        (2, "VSX", f"(CPU instructions: VSX before, {CAPABILITY} now)"),
        (1, "VSX", f"(CPU threads: 1 before, 2 now; CPU instructions: VSX before, {CAPABILITY} now)"),
    ],
)
def test_other_threads_or_instructions_are_told_in_one_sentence(threads: int, capability: str, said: str) -> None:
    found = other_arithmetic(threads, capability)
    assert found == (f"the bits may differ from those of a run without this stop {said}" if said else "")


@pytest.mark.parametrize(
    ("hardware", "model", "told"),
    [
        ({"recompute": "projection", "projection": "plain"}, {}, "needs hardware.projection=fused"),
        ({"recompute": "projection", "strategy": "zero3"}, {}, "needs hardware.strategy other than zero3"),
        ({"recompute": "projection"}, {"lora": "none"}, "needs model.lora=task"),
        (
            {"recompute": "projection"},
            {"d_model": 18, "expand": 4, "headdim": 8},
            "a model.d_model that 4 divides",
        ),
        ({"scan": "rows"}, {"headdim": 8}, "hardware.scan=rows needs trainer.precision=bf16, model.headdim and"),
        ({"scan": "rows"}, {"d_model": 160, "expand": 1, "headdim": 32}, "a multiple of eight heads (there are 5)"),
    ],
)
def test_kernels_that_cannot_be_used_are_refused(hardware: dict[str, Any], model: dict[str, Any], told: str) -> None:
    (problem,) = kernel_problems(HardwareConfig(accelerator="gpu", **hardware), replace(ModelConfig(), **model), "bf16")
    assert told in problem
    assert problem.rsplit("; ", 1)[1].split()[-1].startswith("hardware.")  # the way out
    # a CPU has the plain path: a run that was trained on a GPU is exported and evaluated there
    assert kernel_problems(HardwareConfig(**hardware), replace(ModelConfig(), **model), "float32") == []


def test_kernels_that_can_be_used_are_not_refused() -> None:
    for hardware in (HardwareConfig(accelerator="gpu"), HardwareConfig(accelerator="gpu", scan="rows")):
        assert kernel_problems(hardware, ModelConfig(), "bf16") == []
        assert kernel_problems(replace(hardware, recompute="projection"), ModelConfig(), "bf16") == []
    assert len(kernel_problems(HardwareConfig(accelerator="gpu", scan="rows"), ModelConfig(), "float32")) == 1
