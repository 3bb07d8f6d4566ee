"""How training scales: what is compared with what, and a real run on a CPU's processes."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from modules.files import write_json
from pipelines.benchmark.profile import covered
from pipelines.benchmark.scaling import (
    ScalingBenchmarkConfig,
    ScalingRun,
    measure_scaling,
    read_runs,
    with_ratios,
    words_of,
)
from pipelines.benchmark.train import TrainBenchmarkConfig
from pipelines.run.overrides import ConfigError, parse_overrides

SIZES = (
    *("precision=float32", "steps=2", "warmup=1", "micro_batch={mmu: 2, t2i: 3}", "model.chunk_size=8"),
    *("model.d_model=16", "model.n_layer=2", "model.d_state=4", "model.headdim=8", "model.image_tokens=6"),
    *("model.vocab_size=32", "model.image_vocab=24", "model.vision.given_patches=3", "model.vision.given_width=5"),
)
ONE = ScalingRun("A", "unified_finetune", "ddp", 1, 100.0, 50.0, 0.0, 0.0)


def test_rates_are_compared_with_one_gpu_of_the_same_machine_and_stage() -> None:
    runs = [
        ONE,
        replace(ONE, devices=2, tokens_per_second=190.0),
        replace(ONE, strategy="zero2", devices=4, tokens_per_second=360.0),
        replace(ONE, machine="B", devices=2, tokens_per_second=300.0),
        replace(ONE, stage="t2i_pretrain", devices=2),
        replace(ONE, strategy="zero2"),
    ]
    assert [run.times_one for run in with_ratios(runs)] == [1.0, 1.9, 3.6, None, None, 1.0]


def test_time_that_spans_cover_is_counted_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == 5


def test_an_earlier_file_is_read_or_refused(tmp_path: Path) -> None:
    assert read_runs(tmp_path / "none.json") == []
    write_json(tmp_path / "runs.json", {"runs": [asdict(ONE)]})
    assert read_runs(tmp_path / "runs.json") == [ONE]
    write_json(tmp_path / "odd.json", {"ours": {}})
    with pytest.raises(ValueError, match=r"file with runs .*odd\.json"):
        read_runs(tmp_path / "odd.json")
    write_json(tmp_path / "old.json", {"runs": [{"machine": "A", "gpus": 1}]})
    with pytest.raises(ValueError, match=r"old\.json: its runs are of another version .*gpus"):
        read_runs(tmp_path / "old.json")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("stages=[stage3]", "there is no stage stage3; there are mmu_pretrain, t2i_pretrain, unified_finetune"),
        ("accelerator=cpu", r"devices=\[\] counts GPUs; for a CPU, name the numbers of processes: devices=\[1,2\]"),
        ("strategies=[zero9]", "there is no strategy zero9; there are ddp, zero1, zero2, zero3"),
        ("devices=[0]", r"devices=\[0\] must be at least 1 each"),
    ],
)
def test_broken_rules(word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_overrides(ScalingBenchmarkConfig, [word])


def test_a_run_that_fails_is_told_with_its_last_lines() -> None:
    config = ScalingBenchmarkConfig(accelerator="cpu", devices=(1,), strategies=("ddp",), train=("steps=0",))
    with pytest.raises(ValueError, match=r"(?s)unified_finetune under ddp on 1 failed with code \d+:.*steps=0 must be"):
        measure_scaling(config, [], lambda _: None, lambda _: None)


@pytest.mark.slow
def test_processes_of_a_cpu_are_measured() -> None:
    config = ScalingBenchmarkConfig(accelerator="cpu", devices=(1, 2), strategies=("ddp",), train=SIZES)
    said: list[str] = []
    kept: list[int] = []
    runs = measure_scaling(config, [ONE], said.append, lambda runs: kept.append(len(runs)))
    assert kept == [2, 3]
    assert said == ["unified_finetune, ddp, 1", "unified_finetune, ddp, 2"]
    assert [(run.machine, run.devices) for run in runs] == [("A", 1), ("CPU", 1), ("CPU", 2)]
    assert all(run.tokens_per_second > 0 for run in runs)
    assert [run.times_one for run in runs[:2]] == [1, 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_is_told() -> None:
    with pytest.raises(ValueError, match=r"this machine has no GPU; for its CPU, use accelerator=cpu devices=\[1,2\]"):
        measure_scaling(ScalingBenchmarkConfig(), [], lambda _: None, lambda _: None)


def test_the_words_of_a_run_on_gpus_are_read() -> None:
    """All of them are key=value: an option between them would cut them in two."""
    words = words_of(ScalingBenchmarkConfig(train=("steps=5", "lr=1e-5")), "t2i_pretrain", "zero2", 4)
    found = parse_overrides(TrainBenchmarkConfig, words)
    assert (found.stage, found.hardware.strategy, found.hardware.devices) == ("t2i_pretrain", "zero2", 4)
    assert (found.profile, found.baseline, found.steps, found.lr) == (True, False, 5, 1e-5)
