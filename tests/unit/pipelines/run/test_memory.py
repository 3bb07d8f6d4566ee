"""Memory that a run will need, against peaks measured on an H100 (docs/experiments.md)."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.data_config import Counts, DataConfig
from modules.files import GIB
from modules.omnimamba.config import ModelConfig
from modules.stages import StageConfig
from pipelines.benchmark.train import PUBLISHED_VISION
from pipelines.run.config import RunConfig, TrainerConfig, load
from pipelines.run.hardware import HardwareConfig
from pipelines.run.memory import FULL, estimate_memory, ways_out

ROOT = Path(__file__).parents[4]
PLAIN = {"scan": "mamba_ssm", "projection": "plain"}


def run(stage: str, counts: tuple[int, int], **hardware: object) -> RunConfig:
    return RunConfig(
        name="measured",
        stage=StageConfig(name=stage),  # type: ignore[arg-type]
        trainer=TrainerConfig(max_steps=1, precision="bf16"),
        model=ModelConfig(vision=PUBLISHED_VISION),
        data=DataConfig(micro_batch=Counts(mmu=counts[0], t2i=counts[1])),
        hardware=HardwareConfig(accelerator="gpu", **hardware),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("stage", "counts", "hardware", "peak"),
    [
        ("unified_finetune", (3, 48), {}, 57.8),
        ("t2i_pretrain", (0, 64), {}, 46.6),
        ("unified_finetune", (3, 48), PLAIN, 65.5),
        ("unified_finetune", (3, 48), {**PLAIN, "strategy": "zero2"}, 69.0),
        ("t2i_pretrain", (0, 90), PLAIN, 67.5),
        ("t2i_pretrain", (0, 90), {**PLAIN, "strategy": "zero2"}, 69.0),
        ("t2i_pretrain", (0, 64), PLAIN, 50.9),
        ("mmu_pretrain", (32, 0), {**PLAIN, "strategy": "zero2", "recompute": "block"}, 35.9),
        ("mmu_pretrain", (32, 0), {**PLAIN, "recompute": "block"}, 32.4),
    ],
)
def test_estimates_are_near_measured_peaks(
    stage: str, counts: tuple[int, int], hardware: dict[str, object], peak: float
) -> None:
    estimate = estimate_memory(run(stage, counts, **hardware))
    # nothing is fitted but the workspace; the worst of these nine is 2.2 % off
    assert estimate.peak / GIB == pytest.approx(peak, rel=0.03)
    assert estimate.needed > peak * GIB


def test_what_ran_out_of_memory_is_foreseen() -> None:
    config = run("mmu_pretrain", (32, 0), **PLAIN)
    assert estimate_memory(config).needed > 79.1 * GIB
    found = ways_out(config)
    assert set(found) == {"hardware.recompute=block", '"data.micro_batch={mmu: 16}" "data.global_batch={mmu: 32}"'}
    assert all(estimate.needed < 79.1 * GIB for estimate in found.values())


def test_less_is_kept_the_more_is_computed_again() -> None:
    blocks = [
        estimate_memory(run("unified_finetune", (3, 48), recompute=level)).parts["activations of the blocks"]
        for level in ("none", "projection", "block")
    ]
    projections = 48 * 2 * (3 * 1182 + 48 * 329) * (2 * 4096 + 2 * 128 + 64)
    assert blocks[0] - blocks[1] == projections
    assert blocks[2] == 48 * 6 * 2048 * (3 * 1182 + 48 * 329)


def test_zero_divides_what_it_says() -> None:
    parts = {
        strategy: estimate_memory(run("unified_finetune", (3, 48), strategy=strategy, devices=8)).parts
        for strategy in ("ddp", "zero1", "zero2", "zero3")
    }
    weights = parts["ddp"]["weights, float32"]
    assert weights > 1.3e9 * FULL
    moments = {strategy: found["optimizer: moments"] / weights for strategy, found in parts.items()}
    assert moments == {"ddp": 2, "zero1": 0.25, "zero2": 0.25, "zero3": 0.25}
    gradients = {strategy: found["gradients"] / weights for strategy, found in parts.items()}
    # under ZeRO 1 and 2 they take the room of 38 GiB of activations; ZeRO 3 has a place for them throughout
    assert gradients == {"ddp": 1, "zero1": 0, "zero2": 0, "zero3": 0.125}
    assert parts["zero3"]["weights, float32"] == weights / 8
    assert set(ways_out(run("unified_finetune", (3, 47), strategy="zero2", devices=8))) == {
        "hardware.recompute=projection",
        "hardware.recompute=block",
        "hardware.strategy=zero3",
    }


def test_gradients_that_are_accumulated_need_a_place_of_their_own() -> None:
    config = run("unified_finetune", (3, 48), strategy="zero2", devices=8)
    twice = replace(config, data=replace(config.data, global_batch=Counts(mmu=48, t2i=768)))
    gradients = [estimate_memory(each).parts["gradients"] for each in (config, twice)]
    assert gradients == [0, estimate_memory(config).parts["weights, float32"] / 8]


def test_ways_out_are_overrides_that_load() -> None:
    path = ROOT / "configs" / "stage1_t2i.yaml"
    config = load(path)
    config = replace(config, hardware=replace(config.hardware, strategy="ddp"))
    for words in ways_out(config):
        changed = load(path, [word for word in words.split('"') if "=" in word])
        assert estimate_memory(changed).peak < estimate_memory(config).peak


@pytest.mark.parametrize(("gib", "code", "verdict"), [("80", 0, "fits"), ("40", 1, "does not fit")])
def test_the_verb_says_whether_it_fits(gib: str, code: int, verdict: str) -> None:
    words = ["memory", "configs/stage2_unified.yaml", "--gpu-gib", gib]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.doctor", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert f"GiB of {gib}.0: {verdict}\n" in done.stdout
    assert ("hardware.recompute=block would need" in done.stdout) == bool(code)
