"""Plain lines where the output is no terminal."""

import pytest

from pipelines import progress
from pipelines.progress import TrainingProgress

METRICS = {"train/loss": 3.0, "train/loss_mmu": 1.0, "train/tokens_per_s": 12345.0}


def test_a_line_now_and_then_and_always_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = TrainingProgress("demo", 10, seconds=10.0)
    for step in range(1, 11):
        shown.show(step, METRICS)
        now += 4.0
    shown.close()
    assert capsys.readouterr().out.splitlines() == [
        "demo  step 1/10  loss 3.000  loss_mmu 1.000  12,345 tokens/s",
        "demo  step 4/10  loss 3.000  loss_mmu 1.000  12,345 tokens/s  24 s left",
        "demo  step 7/10  loss 3.000  loss_mmu 1.000  12,345 tokens/s  12 s left",
        "demo  step 10/10  loss 3.000  loss_mmu 1.000  12,345 tokens/s  0 s left",
    ]
