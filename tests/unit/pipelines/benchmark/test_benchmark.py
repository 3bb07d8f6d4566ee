"""The benchmarks run and say what they measured; how fast anything is, is no matter of tests."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules.data_config import Counts
from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.model import OmniMamba
from modules.stages import STAGES
from pipelines.benchmark import __main__ as benchmark
from pipelines.benchmark.baselines import published_step
from pipelines.benchmark.data import DataBenchmarkConfig
from pipelines.benchmark.generate import GenerateBenchmarkConfig, floor_seconds, measure_generate
from pipelines.benchmark.layer import REST, LayerBenchmarkConfig, floor_ms, part_of, parts_of
from pipelines.benchmark.train import TrainBenchmarkConfig, measure_train, synthetic_batch
from pipelines.run.hardware import HardwareConfig
from pipelines.run.overrides import ConfigError, parse_overrides
from tests.unit.modules.omnimamba.conftest import TINY as SMALL

ROOT = Path(__file__).parents[4]
TINY = replace(SMALL, mmu_text_length=9, vision=VisionConfig(kind="features", given_patches=3, given_width=5))


def test_data_are_measured_and_written_down(tmp_path: Path) -> None:
    sizes = ["t2i_samples=1000", "mmu_samples=100", "deep_samples=1000", "seconds=0.05", "rounds=1", "workers=1"]
    words = ["data", f"folder={tmp_path / 'shards'}", *sizes, "--json", str(tmp_path / "data.json")]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.benchmark", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "data.json").read_text())
    assert found["machine"]["cores"] >= 1
    assert found["config"]["t2i_samples"] == 1000
    units = [(line["unit"], line["webdataset"] is not None) for line in found["results"]]
    assert units == [("images/s", True), *[("samples/s", True)] * 6, ("MB", False), ("ms", False)]
    assert all(line["ours"] > 0 for line in found["results"] if line["unit"] != "MB")
    for line in found["results"]:
        assert line["what"].split(",")[0] in done.stdout


def test_broken_rules_of_the_data_benchmark() -> None:
    assert DataBenchmarkConfig(folder="x", workers=0, seconds=0).problems() == [
        "workers=0 must be at least 1",
        "seconds=0 must be above 0",
    ]


def config(**changes: object) -> TrainBenchmarkConfig:
    values = {"model": TINY, "micro_batch": Counts(mmu=2, t2i=3), "precision": "float32", "warmup": 1, "steps": 8}
    return TrainBenchmarkConfig(**{**values, "hardware": HardwareConfig(), "lr": 1e-2, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["mmu_pretrain", "t2i_pretrain", "unified_finetune"])
def test_a_stage_learns_the_batch_that_it_is_measured_on(stage: str) -> None:
    found = measure_train(config(stage=stage))
    assert found["ours"]["last_loss"] < found["ours"]["first_loss"]
    assert found["ours"]["seconds_per_step"] > 0
    assert found["gpu"] == "CPU"
    assert "published" not in found  # its kernels are a GPU's


@pytest.mark.parametrize("stage", ["mmu_pretrain", "t2i_pretrain", "unified_finetune"])
def test_the_published_loop_learns_the_same_from_the_same(stage: str) -> None:
    """One step after the other it has our losses: only how they are computed differs."""
    wanted = config(stage=stage, steps=3)
    batch = synthetic_batch(TINY, wanted.micro_batch, STAGES[wanted.stage].tasks)
    step = published_step(wanted, batch, torch.device("cpu"))
    ours = measure_train(wanted)["ours"]
    losses = [float(step()) for _ in range(5)]  # ours are a step to warm up, three that are timed, and one after them
    assert losses[0] == pytest.approx(ours["first_loss"], rel=1e-5)
    assert losses[-1] == pytest.approx(ours["last_loss"], rel=2e-3)  # our schedule lowers the rate by 2 %
    assert losses[-1] < losses[0]


def test_a_profile_needs_a_gpu() -> None:
    assert config(profile=True).problems() == [
        "profile=true needs a GPU; leave it out, or add hardware.accelerator=gpu"
    ]


def test_a_kernel_belongs_to_a_part() -> None:
    names = {
        "nvjet_sm90_tst_192x192_64x3_1x2_h_bz_coopB_NTN": "matrix products",
        "void causal_conv1d_channellast_bwd_kernel<...>": "convolution",
        "_conv_backward": "convolution",
        "_layer_norm_bwd_kernel": "norms",
        "_norm_forward": "norms",
        "_layer_norm_fwd_1pass_kernel": "norms",
        "backward_products": "scan",
        "forward": "scan",
        "_chunk_scan_bwd_dcb_kernel": "scan",
        "_state_passing_fwd_kernel": "scan",
        "_dropout": "dropout",
        "Memcpy DtoD (Device -> Device)": REST,
    }
    assert {name: part_of(name) for name in names} == names
    found = parts_of({"forward": (2.0, 1), "steps": (0.5, 2), "_dropout": (1.0, 3)}, {"scan": 1.5})
    assert {part.name: (part.ms, part.floor_ms, part.launches) for part in found} == {
        "matrix products": (0, None, 0),
        "convolution": (0, None, 0),
        "norms": (0, None, 0),
        "scan": (2.5, 1.5, 3),
        "dropout": (1, None, 3),
        REST: (0, None, 0),
    }


def test_the_floor_of_a_block_is_a_count_by_hand() -> None:
    model = ModelConfig(d_model=4, expand=2, d_state=16, headdim=4)
    assert (model.d_inner, model.n_heads) == (8, 2)
    found = floor_ms(model, positions=10, flops=1000.0, bytes_per_second=1000.0)
    channels = 8 + 32
    assert found["matrix products"] == 3 * 2 * 10 * (4 * (8 + channels + 2) + 8 * 4)
    frozen = floor_ms(model, positions=10, flops=1000.0, bytes_per_second=1000.0, frozen=True)
    assert frozen["matrix products"] == found["matrix products"] * 2 / 3
    assert found["scan"] == 10 * 2 * (8 + 8 + 3 * 8)  # x and y; x, dy and dx
    assert found["convolution"] == 10 * 2 * channels * (2 + 2 + 3)
    assert found["norms"] == 10 * (28 * 4 + 18 * 8)
    assert found["dropout"] == 10 * 2 * 4 * 7


def test_a_block_is_measured_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r"a block's kernels are a GPU's; use hardware\.accelerator=gpu"):
        parse_overrides(LayerBenchmarkConfig, ["hardware.accelerator=cpu"])


def test_model_flops_are_those_of_a_count_by_hand() -> None:
    found = measure_train(config())["ours"]
    tokens = 2 * (3 + 9 + 4) + 3 * (5 + 6 + 5)
    assert Counts(mmu=2, t2i=3).positions(TINY, ("mmu", "t2i")) == tokens
    inner, columns = 32, 2 * 32 + 2 * 4 + 4
    blocks = 2 * (16 * columns + inner * 16)
    heads = 2 * 3 * 16 * 32 + 3 * 6 * 16 * 24  # three labels of nine a conversation, six codes a picture
    assert found["tflops"] * found["seconds_per_step"] * 1e12 == pytest.approx(6 * (tokens * blocks + heads))


SIZES = [
    *("model.d_model=16", "model.n_layer=1", "model.d_state=4", "model.headdim=8", "model.chunk_size=8"),
    *("model.vocab_size=32", "model.image_vocab=24", "model.image_tokens=6", "model.caption_length=5"),
    *("model.mmu_text_length=7", "model.mmu_positions=40", "model.t2i_positions=20", "model.projector_hidden=12"),
    *("model.image_mlp_hidden=12", "model.vision.given_patches=3", "model.vision.given_width=5"),
]


@pytest.mark.parametrize(
    ("words", "dashes"),
    [
        (
            ["train", *SIZES, "hardware.accelerator=cpu", "precision=float32", "steps=2"],
            3,
        ),  # times published, peak, of GEMM
        (["generate", *SIZES, "accelerator=cpu", "precision=float32", "batches=[1]", "decode=false"], 3),
    ],
    ids=["train", "generate"],
)
def test_what_a_cpu_has_not_is_a_dash_and_null(
    words: list[str], dashes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *words, "--json", str(tmp_path / "found.json")])
    monkeypatch.setenv("COLUMNS", "160")
    benchmark.main()
    cells = [cell.strip() for cell in capsys.readouterr().out.split("│")]
    assert cells.count("-") == dashes
    found = json.loads((tmp_path / "found.json").read_text(), parse_constant=pytest.fail)
    row = found["ours"] if "ours" in found else found["batches"][0]
    assert row["peak_gib"] is None
    assert found["gpu"] == "CPU"


def test_a_training_that_diverges_is_not_measured() -> None:
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) after 10 steps with lr=1e\+38; choose a smaller lr"):
        measure_train(config(lr=1e38))


def test_broken_rules_of_the_training_benchmark() -> None:
    problems = config(micro_batch=Counts(mmu=0, t2i=3), steps=0).problems()
    assert problems == [
        "stage unified_finetune trains mmu: micro_batch.mmu must be at least 1",
        "steps=0 must be at least 1",
    ]


def test_drawing_is_measured_apart(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = GenerateBenchmarkConfig(
        batches=(1, 3), model=TINY, accelerator="cpu", precision="float32", repeats=1, decode=False
    )
    found = measure_generate(wanted, print)
    assert [row["batch"] for row in found["batches"]] == [1, 3]
    for row in found["batches"]:
        assert row["prefill_s"] > 0
        assert row["loop_s"] > 0
        assert row["images_per_s"] == pytest.approx(row["batch"] / (row["prefill_s"] + row["loop_s"]))
        assert (row["baseline_s"], row["floor_s"], row["peak_gib"]) == (None, None, None)
    assert "batch 3: " in capsys.readouterr().out


@pytest.mark.parametrize(("batch", "seconds"), [(1, 0.22), (16, 0.35), (64, 0.75), (256, 2.4)])
def test_the_floor_of_the_published_model(batch: int, seconds: float) -> None:
    with torch.device("meta"):
        model = OmniMamba(ModelConfig())
    # 2.5 GB of weights, and 0.1 GB of states read and written for each sample, at 3 TB/s
    assert floor_seconds(model, batch, torch.bfloat16, 3.0e12) == pytest.approx(seconds, rel=0.03)


def test_broken_rules_of_the_generation_benchmark() -> None:
    assert GenerateBenchmarkConfig(batches=(), repeats=0, accelerator="cpu").problems() == [
        "batches=[] must be numbers of at least 1, for example [1,16]",
        "repeats=0 must be at least 1",
        "precision=bf16 needs accelerator=gpu; a CPU computes in float32",
    ]
