"""One line that moves on a terminal, plain lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from pipelines.run import progress
from pipelines.run.progress import TrainingProgress, duration

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


def test_the_last_evaluation_is_shown_beside_the_losses(capsys: pytest.CaptureFixture[str]) -> None:
    shown = TrainingProgress("demo", 10, stage="t2i_pretrain", seconds=0.0)
    shown.watch(2, {"train/loss": 1.0, "eval/pope/f1_macro": 0.25, "eval/fd/fd_4": 7.0})
    shown.watch(4, {"eval_mini/pope/random/f1": 0.1, "eval_mini/pope/f1_macro": 0.87654, "eval_mini/pope/yes": 0.5})
    shown.watch(4, {"eval/gqa/accuracy": None, "eval/gqa/n": 8.0})
    shown.watch(5, {"train/loss": 1.0})
    shown.show(5, METRICS)
    assert capsys.readouterr().out == (
        "demo (t2i_pretrain)  step 5/10  loss 3.000  loss_mmu 1.000  12,345 tokens/s  "
        "step 4: pope f1_macro 0.877, gqa n 8\n"
    )


def test_a_terminal_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    screen = io.StringIO()
    shown = TrainingProgress(
        "demo[1]", 100, stage="mmu_pretrain", console=Console(file=screen, force_terminal=True, width=160)
    )
    for step in (1, 2, 3):
        shown.show(step, METRICS)
        now += 60.0
    shown.watch(4, {"eval/pope/f1_macro": 0.5})
    shown.show(4, METRICS)
    shown.close()
    text = Console(file=io.StringIO(), width=160).render_str(screen.getvalue()).plain
    assert text.count("\n") == 1  # what moves stays on its line
    last = text[text.rindex("demo[1]  (mmu_pretrain)") :]
    for part in ("4/100", "96 min left", "loss 3.000  loss_mmu 1.000  12,345 tokens/s  step 4: pope f1_macro 0.5"):
        assert part in last


LONG = {"train/loss": 12.579, "train/loss_mmu": 6.335, "train/loss_t2i": 6.244, "train/tokens_per_s": 12963.0}


@pytest.mark.parametrize(
    ("width", "there", "left_out"),
    [
        (80, ["stage2_unified", "120004/150000", "16 h 40 min left", "loss 12.579"], ["tokens/s", "eval", "━"]),
        (60, ["120004/150000", "16 h 40 min left", "loss 12.579"], ["loss_mmu", "(unified_finetune)", "━"]),
        (30, ["120004/150000"], ["left"]),
        (
            200,
            ["stage2_unified  (unified_finetune)", "━", "loss_mmu 6.335", "12,963 tokens/s", "pope f1_macro 0.5"],
            [],
        ),
    ],
)
def test_step_loss_and_time_left_stay_longest_on_a_narrow_terminal(
    width: int, there: list[str], left_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width)
    shown = TrainingProgress("stage2_unified", 150_000, stage="unified_finetune", console=console)
    shown.watch(120_000, {"eval/pope/f1_macro": 0.5})
    for step in (120_000, 120_004):
        shown.show(step, LONG)
        now += 8.0
    shown.close()
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())  # colours
    lines = [line.rstrip() for line in re.split(r"[\r\n]|\x1b\[[0-9?;]*[A-Za-z]", text) if "120004" in line]
    assert lines
    for part in there:
        assert part in lines[-1]
    assert not [part for part in left_out if part in lines[-1]]
    assert len(lines[-1]) <= width


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (99, "99 s"), (720, "12 min"), (20_000, "5 h 33 min"), (7200, "2 h 0 min"), (183_600, "2 d 3 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
