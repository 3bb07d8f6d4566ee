"""Speed is positions over the time of training alone, by a clock that the test holds; norms are those of torch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import throughput
from callbacks.norms import PartNorms, slug
from callbacks.throughput import RestartClock, Throughput
from datamodules.mixed import MixedDataModule
from modules.flops import model_flops, peak_tflops
from modules.optim import OptimConfig
from modules.stage_modules import UnifiedFinetune
from modules.stages import StageConfig
from modules.trainable import PARTS
from tests.unit.modules.omnimamba.conftest import TINY, batch_of, build

BATCH: dict[str, Any] = batch_of(TINY, mmu=3, t2i=2)
POSITIONS = 3 * (11 + 4) + 2 * (10 + 6)


def stage() -> UnifiedFinetune:
    return UnifiedFinetune(build(), StageConfig(name="unified_finetune"), OptimConfig(), max_steps=1, seed=0)


class Run:
    """A trainer that runs two micro-steps a step on two ranks, and a clock."""

    def __init__(self, data: MixedDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.micro, self.rows, self.shown = 100.0, 0, [], []
        data.positions = {"mmu": 22, "t2i": 45}
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)
        self.trainer: Any = SimpleNamespace(
            accumulate_grad_batches=2,
            world_size=2,
            global_step=0,
            is_global_zero=True,
            datamodule=data,
            strategy=SimpleNamespace(reduce=lambda value, reduce_op: value),
        )
        tracker: Any = SimpleNamespace(log=lambda step, metrics: self.rows.append((step, metrics)))
        self.stage = stage()
        self.callback = Throughput(
            *(tracker, TINY, 2, lambda step, metrics: self.shown.append(step), lambda: {"train/grad_norm": 5.0}, 0.001)
        )
        self.last = RestartClock(self.callback)
        self.callback.on_train_start(self.trainer, self.stage)
        self.now += 1000.0  # evaluated at the start
        self.last.on_train_start(self.trainer, self.stage)

    def step(self, losses: tuple[float, float], *, training: float, callbacks: float, waiting: float = 0.0) -> None:
        """``waiting`` and ``training`` seconds for each micro-step, ``callbacks`` seconds of others behind it."""
        for j, loss in enumerate(losses):
            self.now += waiting
            self.callback.on_train_batch_start(self.trainer, self.stage, BATCH, self.micro)
            self.now += training
            if j == 1:
                groups = [{"lr": 0.5, "name": "decay"}, {"lr": 0.25, "name": "no_decay"}]
                optimizer: Any = SimpleNamespace(param_groups=groups)
                self.callback.on_before_optimizer_step(self.trainer, self.stage, optimizer)
                self.trainer.global_step += 1
            out = {"loss": torch.tensor(loss / 2), "losses": {"mmu": torch.tensor(loss)}}  # Lightning scales the loss
            self.callback.on_train_batch_end(self.trainer, self.stage, out, BATCH, self.micro)
            self.now += callbacks
            self.last.on_train_batch_end(self.trainer, self.stage, out, BATCH, self.micro)
            self.micro += 1


def test_tokens_per_second_leave_out_what_other_callbacks_took(
    monkeypatch: pytest.MonkeyPatch, data: MixedDataModule
) -> None:
    run = Run(data, monkeypatch)
    run.step((1.0, 3.0), training=0.5, callbacks=100.0)
    assert run.rows == []
    run.step((2.0, 6.0), training=0.5, callbacks=100.0)
    [(step, metrics)] = run.rows
    assert step == 2
    assert run.shown == [2]
    assert metrics["train/tokens_per_s"] == pytest.approx(4 * POSITIONS * 2 / (4 * 0.5))
    assert metrics["train/loss"] == pytest.approx(4.0)  # of the step that is logged
    assert metrics["train/loss_mmu"] == pytest.approx(4.0)
    assert metrics["train/lr"] == 0.5
    assert metrics["train/grad_norm"] == pytest.approx(5.0)
    assert (metrics["train/lr_decay"], metrics["train/lr_no_decay"]) == (0.5, 0.25)
    assert (metrics["data/epoch_mmu"], metrics["data/samples_mmu"]) == (2.0, 22)
    assert metrics["system/data_wait_s"] == 0
    assert "system/gpu_peak_gib" not in metrics


def test_the_next_log_counts_from_the_last(monkeypatch: pytest.MonkeyPatch, data: MixedDataModule) -> None:
    run = Run(data, monkeypatch)
    for seconds in (9.0, 9.0, 0.25, 0.25):
        run.step((1.0, 1.0), training=seconds, callbacks=1.0)
    assert run.rows[1][1]["train/tokens_per_s"] == pytest.approx(POSITIONS * 2 / 0.25)


def test_the_wait_for_data_is_counted_apart_and_is_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch, data: MixedDataModule
) -> None:
    run = Run(data, monkeypatch)
    for _ in range(4):
        run.step((1.0, 1.0), training=0.5, callbacks=100.0, waiting=0.25)
    for _, metrics in run.rows:
        assert metrics["system/data_wait_s"] == pytest.approx(4 * 0.25)
        assert metrics["train/tokens_per_s"] == pytest.approx(4 * POSITIONS * 2 / (4 * 0.75))


def test_utilisation_is_model_flops_over_time_over_the_peak(
    monkeypatch: pytest.MonkeyPatch, data: MixedDataModule
) -> None:
    run = Run(data, monkeypatch)
    for _ in range(2):
        run.step((1.0, 1.0), training=0.5, callbacks=1.0)
    [(_, metrics)] = run.rows
    flops = model_flops(run.stage, BATCH, POSITIONS)
    inner, columns = 32, 2 * 32 + 2 * 4 + 4
    blocks, labels = 2 * (16 * columns + inner * 16), int((BATCH["mmu"]["labels"] != -100).sum())
    assert flops == 6 * (POSITIONS * blocks + labels * 16 * 32 + 2 * 6 * 16 * 24)  # counted by hand
    assert metrics["system/model_tflops"] == pytest.approx(4 * flops / 2.0 / 1e12)
    assert metrics["system/mfu"] == pytest.approx(metrics["system/model_tflops"] / 0.001)


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks(gpu: str, peak: float | None) -> None:
    assert peak_tflops(gpu) == peak


def test_norms_of_parts_are_those_of_their_gradients() -> None:
    module, norms = stage(), PartNorms(2)
    module.training_step(BATCH, 0)["loss"].backward()  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(strategy=None, is_global_zero=True, global_step=0, accumulate_grad_batches=1)
    optimizer: Any = None
    norms.on_before_optimizer_step(trainer, module, optimizer)
    assert norms.look() == {}  # step 1 is not logged
    trainer.global_step = 1
    norms.on_before_optimizer_step(trainer, module, optimizer)
    trainer.global_step = 2
    norms.on_train_batch_end(trainer, module, None, None, 1)
    found = norms.look()
    assert norms.look() == {}
    model = module.model
    for scale in ("A_log", "dt_bias"):
        values = torch.cat([getattr(layer.mixer, scale).flatten() for layer in model.backbone.layers])
        assert found.pop(f"param_norm/{scale}") == pytest.approx(float(values.detach().norm()), rel=1e-6)
    gradients = torch.cat([p.grad.flatten() for p in model.projector.parameters() if p.grad is not None])
    assert found["grad_norm/projector"] == pytest.approx(float(gradients.norm()), rel=1e-6)
    assert found.keys() <= {f"grad_norm/{slug(part)}" for part, _ in PARTS}
    assert {"grad_norm/mamba_2_blocks", "grad_norm/mmu_adapters", "grad_norm/t2i_positions"} <= found.keys()
    whole = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    assert sum(norm**2 for norm in found.values()) ** 0.5 == pytest.approx(float(whole), rel=1e-6)


def test_norms_cost_the_other_ranks_nothing() -> None:
    module, norms = stage(), PartNorms(1)
    trainer: Any = SimpleNamespace(strategy=None, is_global_zero=False, global_step=1, accumulate_grad_batches=1)
    norms.on_train_batch_end(trainer, module, None, None, 0)
    assert norms.look() == {}
