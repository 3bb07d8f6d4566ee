"""When checkpoints are written, what becomes of training when they cannot be, and which is the best by a measure."""

import errno
import json
import logging
import math
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from callbacks import checkpointing
from callbacks.checkpoint_config import CheckpointConfig
from callbacks.checkpointing import Checkpointing, best_step
from modules.checkpoints import STATE, CheckpointError, latest_valid, problem, read_state
from modules.files import sha256, step_name

KEY = "eval/pope/f1_macro"
ROWS = [
    {"step": 10, KEY: 0.5},
    {"step": 20, KEY: 0.9},
    {"step": 20, "train/loss": 1.0},
    {"step": 30, KEY: None},
    {"step": 40, KEY: 0.9},
    {"step": 50, KEY: 0.99},
]


@pytest.mark.parametrize(("direction", "step"), [("highest", 20), ("lowest", 10)])
def test_the_best_of_those_that_are_there(tmp_path: Path, direction: str, step: int) -> None:
    config = CheckpointConfig(best=KEY, best_is=direction)  # type: ignore[arg-type]
    assert best_step(ROWS, tmp_path, config) is None
    for each in (10, 20, 30, 40):
        (tmp_path / step_name(each)).mkdir()
    assert best_step(ROWS, tmp_path, config) == step
    assert best_step([{"step": 10, "train/loss": 1.0}], tmp_path, config) is None


def test_problems() -> None:
    assert CheckpointConfig().problems() == []
    assert CheckpointConfig(every_n_steps=0, max_errors=0, best="train/loss").problems() == [
        "checkpoint.every_n_steps=0 must be at least 1",
        "checkpoint.max_errors=0 must be at least 1",
        "checkpoint.best=train/loss must be a measure's key, such as eval/pope/f1_macro",
    ]


class Noise(Dataset[Tensor]):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, i: int) -> Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(i))


class Small(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def train(folder: Path, steps: int = 6, extra: pl.Callback | None = None, **config: Any) -> pl.Trainer:
    """Saves at every step."""
    saving = Checkpointing(CheckpointConfig(**{"every_n_steps": 1, "keep_last": 9} | config), folder, {"name": "small"})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[*([extra] if extra else []), saving],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Small(), DataLoader(Noise(), batch_size=2))
    return trainer


def steps(folder: Path) -> list[int]:
    """Of the checkpoints in ``folder``, which holds nothing else."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


Full = Callable[[set[int]], list[int]]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """Lets the disk be full whenever one of the given steps is saved; returns the list of those that were tried."""
    write = checkpointing.write_checkpoint

    def let(at: set[int]) -> list[int]:
        tried: list[int] = []

        def full_or_write(state: Any, final: Path, step: int) -> None:
            tried.append(step)
            if step in at:
                raise CheckpointError(f"no room for {final.name}")
            write(state, final, step)

        monkeypatch.setattr(checkpointing, "write_checkpoint", full_or_write)
        return tried

    return let


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_is_left_out_loudly_and_training_goes_on(
    tmp_path: Path, full: Full, caplog: pytest.LogCaptureFixture, background: bool
) -> None:
    full({2, 3, 5})
    assert train(tmp_path, background=background).global_step == 6
    assert steps(tmp_path) == [1, 4, 6]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        f"CHECKPOINT NOT SAVED: no room for {step_name(step)}. Training goes on (checkpoint.on_error=go_on); "
        f"number {number} in a row, 3 end it"
        for step, number in ((2, 1), (3, 2), (5, 1))
    ]


@pytest.mark.parametrize("background", [False, True])
def test_too_many_in_a_row_end_the_run(tmp_path: Path, full: Full, background: bool) -> None:
    tried = full({2, 3, 4, 5, 6})
    with pytest.raises(CheckpointError) as error:
        train(tmp_path, background=background)
    assert str(error.value) == (
        f"no room for {step_name(4)}. That was number 3 in a row, and training stops (checkpoint.max_errors)"
    )
    assert tried == [1, 2, 3, 4]
    assert steps(tmp_path) == [1]


def test_one_is_enough_where_the_user_says_so(tmp_path: Path, full: Full) -> None:
    full({3})
    with pytest.raises(CheckpointError, match=r"no room for .*3\. Training stops, as checkpoint\.on_error=stop says"):
        train(tmp_path, on_error="stop")
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("background", [False, True])
def test_the_last_one_is_tried_again_and_must_be_there(tmp_path: Path, full: Full, background: bool) -> None:
    """A complete run without its last checkpoint would be no result."""
    tried = full({6})
    with pytest.raises(CheckpointError, match=r"no room for .*6\. The run cannot end without it; start the same"):
        train(tmp_path, background=background)
    assert tried == [1, 2, 3, 4, 5, 6, 6]
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


class MovedOn(pl.Callback):
    """Says when training has gone beyond a step."""

    def __init__(self) -> None:
        self.beyond = {step: threading.Event() for step in range(7)}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int) -> None:
        self.beyond[trainer.global_step - 1].set()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.beyond[trainer.global_step].set()


def test_what_is_written_in_the_background_is_the_state_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write begins when the next step has changed the weights and moments: the same bits must come out."""
    train(tmp_path / "at_once")
    write, moved_on, in_time = checkpointing.write_checkpoint, MovedOn(), []

    def late(state: Any, final: Path, step: int) -> None:
        in_time.append(moved_on.beyond[step].wait(30))
        write(state, final, step)

    monkeypatch.setattr(checkpointing, "write_checkpoint", late)
    train(tmp_path / "later", extra=moved_on, background=True)
    assert in_time == [True] * 6
    assert steps(tmp_path / "later") == steps(tmp_path / "at_once") == [1, 2, 3, 4, 5, 6]
    for step in range(1, 7):
        one, other = (read_state(tmp_path / how / step_name(step)) for how in ("at_once", "later"))
        assert one["global_step"] == other["global_step"] == step
        for part in ("state_dict", "optimizer_states", "loops"):
            torch.testing.assert_close(other[part], one[part], rtol=0, atol=0)


def test_a_run_that_fails_finishes_what_it_is_writing(tmp_path: Path) -> None:
    class Fail(pl.Callback):
        def on_train_batch_end(
            self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, i: int
        ) -> None:
            if trainer.global_step == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path, extra=Fail(), background=True)
    assert steps(tmp_path) == [1, 2]
    assert problem(tmp_path / step_name(2)) is None


@pytest.mark.parametrize(("device", "mapped"), [("cuda", True), ("cpu", False)])
def test_a_gpu_takes_its_state_out_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, mapped: bool
) -> None:
    seen = []
    monkeypatch.setattr(checkpointing, "read_state", lambda folder, mapped: seen.append((folder, mapped)))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    Checkpointing(CheckpointConfig(), tmp_path, {}).setup(trainer, Small(), "fit")  # type: ignore[arg-type]
    trainer.strategy.checkpoint_io.load_checkpoint(tmp_path / step_name(1) / STATE, weights_only=True)
    assert seen == [(tmp_path / step_name(1), mapped)]


def test_a_full_tmp_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own saving goes by way of it."""

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkstemp", no_room)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", no_room)
    with pytest.raises(OSError, match="No space left"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "theirs")
    train(tmp_path / "ours", steps=1)
    assert steps(tmp_path / "ours") == [1]


def test_old_checkpoints_that_cannot_be_removed_cost_no_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpointing, "remove_old", fail)
    train(tmp_path, steps=3, keep_last=1)
    assert steps(tmp_path) == [1, 2, 3]
    assert latest_valid(tmp_path, pytest.fail) == tmp_path / step_name(3)
    assert f"old checkpoints in {tmp_path} could not be removed: [Errno 13] Permission denied" in caplog.text


class Spoiled(pl.Callback):
    """Makes a moment of step 3 something that training could not go on from."""

    def __init__(self, moment: str, value: float) -> None:
        self.moment, self.value = moment, value

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == 3:
            [weight, *_] = module.parameters()
            trainer.optimizers[0].state[weight][self.moment][0, 0] = self.value


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("moment", "value"), [("exp_avg", math.nan), ("exp_avg_sq", math.inf), ("exp_avg_sq", -1e-9)])
def test_a_state_that_training_cannot_go_on_from_is_not_saved_and_ends_the_run(
    tmp_path: Path, moment: str, value: float, background: bool
) -> None:
    with pytest.raises(CheckpointError, match=rf"optimizer_states\.0\.state\.0\.{moment} holds NaN, infinity or"):
        train(tmp_path, extra=Spoiled(moment, value), keep_last=1, background=background)
    assert steps(tmp_path) == [2]


def test_an_older_checkpoint_is_checked_when_it_is_read(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    newest = tmp_path / "step-000000002"
    state = read_state(newest, mapped=False)
    state["state_dict"]["net.bias"][0] = math.nan
    torch.save(state, newest / STATE)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"][STATE] = {"bytes": (newest / STATE).stat().st_size, "sha256": sha256(newest / STATE)}
    del manifest["finite"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    said: list[str] = []
    assert latest_valid(tmp_path, said.append) == tmp_path / "step-000000001"
    assert "state_dict.net.bias holds numbers that training cannot go on from" in said[0]


def test_any_failure_of_a_save_ends_the_run_on_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(checkpointing, "write_checkpoint", fail)
    with pytest.raises(CheckpointError, match="a checkpoint was not written: CUDA error"):
        train(tmp_path)


def test_a_checkpoint_that_cannot_be_logged_is_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_checkpoint: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    original = Checkpointing.__init__
    monkeypatch.setattr(Checkpointing, "__init__", lambda self, *given: original(self, *given, saved=fail))
    train(tmp_path, steps=1)
    assert steps(tmp_path) == [1]
    assert "step-000000001 is saved, but could not be logged: [Errno 5] Input/output error" in caplog.text
