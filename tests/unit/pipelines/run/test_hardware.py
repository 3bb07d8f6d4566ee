"""How many threads a run computes with, and when its bits may differ."""

import os
from collections.abc import Iterator

import pytest
import torch

from pipelines.run.hardware import HardwareConfig, other_arithmetic, use_threads

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
