"""docs/reproduce.md: every command works, in its order, on small stand-ins; its numbers are the project's own."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from callbacks.measures.fid_config import FidConfig
from datamodules.scenes.prepare import PrepareScenesConfig, prepare_scenes
from datamodules.sources.pretokenized import PretokenizedConfig
from modules.metrics.paper import OURS, TABLES
from modules.omnimamba.llamagen_layers import LlamaGenConfig
from modules.published import LANGUAGE
from pipelines.run.config import load
from tests.pages import ROOT, commands, table
from tests.unit.modules.omnimamba.recorded import published_shapes

from .published_files import PICTURES, VQ_16, PublishedFiles
from .walking import Walk, make_programs

PAGE = "docs/reproduce.md"
EXPERIMENTS = ROOT / "docs" / "experiments.md"
RUNS = ("stage1_mmu", "stage1_t2i", "stage2_unified")
QUESTIONS = ("pope", "gqa", "vqav2", "mme", "mmmu")
VIT = {"width": 64, "depth": 4, "heads": 4, "mlp_hidden": 256}
SHORT = {
    "trainer": {"max_steps": 2, "log_every_n_steps": 1},
    "data": {"micro_batch": {"mmu": 1, "t2i": 1}, "global_batch": {"mmu": 1, "t2i": 1}, "num_workers": 0},
    "evaluation": {"at_end": False},
    "tracking": {"wandb": "disabled"},
}
SMALLER: dict[str, dict[str, Any]] = {
    "model/omnimamba_1b3.yaml": {
        "model": {
            "d_model": 16,
            "n_layer": 1,
            "d_state": 8,
            "headdim": 8,
            "chunk_size": 64,
            "vocab_size": 528,
            "mmu_text_length": 200,
            "mmu_positions": 400,
            "projector_hidden": 16,
            "image_mlp_hidden": 16,
            "vision": {
                "image_size": 56,
                "dtype": "float32",
                "dino": VIT | {"registers": 4, "class_token": True, "layer_scale": True},
                "siglip": VIT | {"width": 72, "depth": 3, "mlp_hidden": 270},
            },
        },
    },
    "hardware/gpu_node.yaml": {
        "hardware": {"accelerator": "cpu", "devices": 1, "strategy": "ddp"},
        "trainer": {"precision": "float32"},
    },
    "evaluation/understanding.yaml": {
        "evaluation": {key: {"data": "scenes", "max_new_tokens": 2} for key in QUESTIONS},
    },
    "evaluation/generation.yaml": {
        "evaluation": {
            "fid": {"data": "scenes", "extractor": "pool", "weights": "", "n": 2},
            "samples": {"n": 2},
            "speed": {"batch": 1, "warmup": 0, "batches": 1},
        },
    },
    **{f"{run}.yaml": SHORT for run in RUNS},
}
"""What each configuration is given so that a CPU walks the page in seconds. Nothing else is changed."""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The walk, at its end."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "configs", clone / "configs")
    shutil.copytree(ROOT / "slurm", clone / "slurm")
    for name, changes in SMALLER.items():
        path = clone / "configs" / name
        OmegaConf.save(OmegaConf.merge(OmegaConf.load(path), changes), path)
    make_programs(clone)
    config = PrepareScenesConfig(folder=str(clone / "scenes"), images=12, val_images=4, codebook_size=16, patch_size=16)
    files = PublishedFiles(clone=clone, scenes=prepare_scenes(config, say=lambda _: None))
    files.by_hand()
    walk = Walk(clone, files)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        patch.setattr(
            "modules.omnimamba.llamagen.LlamaGenConfig", lambda **sizes: LlamaGenConfig(**asdict(VQ_16) | sizes)
        )
        for command in commands(PAGE):
            walk(command)
        yield walk


def results(run: Path) -> dict[str, Any]:
    (path,) = run.glob("records/*/results.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_every_command_works_in_its_order(walked: Walk) -> None:
    assert walked.done == commands(PAGE)
    for run in (*RUNS, "from_published"):
        assert (walked.clone / "runs" / run / "COMPLETE").is_file(), run
    submitted = (walked.clone / "submitted").read_text().splitlines()
    assert submitted == ["--test-only slurm/stage1.sh", "--test-only slurm/stage2.sh"]
    with Image.open(walked.clone / "data" / "peek.png") as picture:
        assert picture.size == (256, 256)


def test_all_measures_of_both_tables_have_a_result(walked: Walk) -> None:
    tables = {"pope_style", "mme_style", "vqav2_style", "gqa_style", "mmmu_style", "fd_pool"}
    runs = walked.clone / "runs"
    assert set(results(runs / "published")) == tables | {"samples", "speed_mini"}
    assert set(results(runs / "stage2_unified")) == tables | {"vqav2_test-dev2015_style"}
    assert list(runs.glob("stage2_unified/records/*/*/submission_test-dev2015.json"))
    assert (runs / "stage2_unified" / "report.html").is_file()


def test_each_set_is_where_its_stage_looks_and_rejects_are_counted(walked: Walk) -> None:
    for folder, rejected in (("coco_t2i", 0), ("sharegpt4v_pretrain", 1), ("instruct_mix", 1), ("coco_t2i_own", 0)):
        counts = json.loads((walked.clone / "data" / folder / "manifest.json").read_text())["meta"]["counts"]
        assert counts["rejected"] == rejected, folder
        assert folder == "coco_t2i_own" or counts["samples"] == PICTURES
    named = {row["out"] for row in table(PAGE, "out")}
    configs = [load(ROOT / "configs" / f"{run}.yaml").data for run in RUNS]
    manifests = {str(Path(path).parent.relative_to(ROOT)) for each in configs for path in (each.mmu, each.t2i) if path}
    assert named == manifests


def test_what_a_run_starts_from_is_what_the_page_says(walked: Walk) -> None:
    def config(run: str) -> Any:
        return OmegaConf.load(walked.clone / "runs" / run / "config.yaml")

    assert config("stage1_t2i").pretrained == str(walked.clone / "weights/mamba2-1.3b")
    assert list(config("stage2_unified").init_from) == ["runs/stage1_mmu", "runs/stage1_t2i"]
    assert config("from_published").pretrained == str(walked.clone / "weights/OmniMamba-1.3b.pth")
    assert list(config("from_published").init_from) == []


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_hours_follow_from_the_configurations_and_the_measured_rates() -> None:
    rows = table(PAGE, "run")
    assert [row["run"] for row in rows] == list(RUNS)
    text = (ROOT / PAGE).read_text()
    (share,) = re.findall(r"Eight GPUs are taken as 8 x (0\.\d+) times one", text)
    hours = {}
    for row in rows:
        config = load(ROOT / "configs" / f"{row['run']}.yaml")
        whole, steps, devices = config.data.global_batch, config.trainer.max_steps, config.hardware.devices
        assert whole is not None
        assert devices == 8
        tokens = whole.mmu * config.model.mmu_length + whole.t2i * config.model.t2i_length
        rate = number(row["tokens/s of one GPU"]) * devices * float(share)
        hours[row["run"]] = steps * tokens / rate / 3600
        assert row["MMU + T2I samples a step"] == f"{whole.mmu} + {whole.t2i}"
        assert number(row["steps"]) == steps
        assert number(row["tokens a step"]) == tokens
        assert number(row["tokens/s of eight"]) == round(rate)
        assert row["hours"] == f"{hours[row['run']]:.1f}"
    side_by_side = max(hours["stage1_mmu"], hours["stage1_t2i"]) + hours["stage2_unified"]
    assert f"{side_by_side:.1f} hours; on one node, {sum(hours.values()):.1f}" in text


def test_the_rates_are_those_of_the_experiment_that_the_page_cites() -> None:
    title = r"## 2026-11-23: the 1\.3B model's stages on one GPU\n(.*?)\n## "
    (section,) = re.findall(title, EXPERIMENTS.read_text(), re.DOTALL)
    measured = [1000 * float(rate) for rate in re.findall(r"\| ZeRO 2 \| [\d.]+ \| ([\d.]+)k \|", section)]
    rates = {row["run"]: number(row["tokens/s of one GPU"]) for row in table(PAGE, "run")}
    assert [rates[run] for run in ("stage2_unified", "stage1_t2i", "stage1_mmu")] == measured


def test_what_comes_when_and_how_long_drawing_takes() -> None:
    text = (ROOT / PAGE).read_text()
    mmu, t2i, unified = (load(ROOT / "configs" / f"{run}.yaml") for run in RUNS)
    saves = [f"{each.checkpoint.every_n_steps:,}" for each in (mmu, t2i, unified)]
    assert f"every {saves[0]} steps of `stage1_mmu`, every {saves[1]} of the others" in text
    assert saves[1] == saves[2]
    (every,) = {each.evaluation.every_n_steps for each in (t2i, unified)}
    assert f"every {every:,} steps of `stage1_t2i` and `stage2_unified`" in text
    assert not mmu.evaluation.sections()
    codes = t2i.model.image_vocab
    assert f"near {math.log(codes):.1f} = ln {codes:,}" in text
    section = unified.evaluation.section(FidConfig)
    assert section is not None
    (rate,) = re.findall(
        rf"^\| {unified.evaluation.batch_size} \| ([\d.]+) \| 0\.090 ", EXPERIMENTS.read_text(), re.MULTILINE
    )
    minutes = section.n / float(rate) / 60
    assert f"{section.n:,} pictures takes {minutes:.0f} minutes on one H100 and {minutes / 8:.0f} on eight" in text
    assert f"the measured {rate} pictures a second" in text


def test_the_papers_numbers_are_those_that_results_are_compared_with() -> None:
    for paper, name in zip(TABLES, ("Table 1", "Table 2"), strict=False):
        (row,) = table(PAGE, name)
        assert row[name] == OURS
        assert list(row.values())[1:] == paper.cells(OURS)
        assert list(row)[1:] == [column.title for column in paper.columns]


def test_the_released_checkpoint_has_the_size_of_what_the_page_says_it_holds() -> None:
    (row,) = [row for row in table(PAGE, "file") if row["file"] == "OmniMamba-1.3b.pth"]
    named = published_shapes().items()
    count = sum(math.prod(shape) for name, shape in named if name.startswith((LANGUAGE, "projector.")))
    assert row["size"] == f"{2 * count / 1e9:.2f} GB"  # float16


def test_what_is_expected_of_the_released_codes() -> None:
    (row,) = [row for row in table(PAGE, "out") if row["out"] == "data/coco_t2i"]
    samples, shards = map(number, re.findall(r"[\d,]+\d", row["expect"]))
    assert shards == -(-samples // PretokenizedConfig(out="x", annotations="x").per_shard)
