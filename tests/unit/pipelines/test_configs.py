"""Every configuration that comes with the project loads, and its model can be built and trained."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from modules.files import GIB
from modules.omnimamba.model import OmniMamba
from modules.published import published
from modules.stages import STAGES
from modules.trainable import set_trainable
from pipelines.run.config import load
from pipelines.run.memory import estimate_memory
from tests.unit.modules.omnimamba.recorded import published_shapes

CONFIGS = Path(__file__).parents[3] / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))


def test_there_are_configurations() -> None:
    assert {"smoke_mmu", "smoke_t2i", "smoke_unified"} <= {path.stem for path in RUNS}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_composes_and_its_stage_finds_what_to_train(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem  # the run folder is named by it
    with torch.device("meta"):
        model = OmniMamba(config.model)
    stage = config.stage
    report = set_trainable(model, STAGES[stage.name].trainable, also_train=stage.also_train, freeze=stage.freeze)
    assert report.names
    assert set(report.names) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_what_a_file_includes_is_there(path: Path) -> None:
    includes = OmegaConf.load(path).get("include", [])
    for name in [includes] if isinstance(includes, str) else includes:
        assert (path.parent / name).is_file()


@pytest.mark.parametrize("name", ["stage1_mmu", "stage1_t2i", "stage2_unified"])
def test_the_image_tokenizer_is_the_one_that_the_released_code_loads(name: str) -> None:
    assert Path(load(CONFIGS / f"{name}.yaml").model.vq).name == "vq_ds16_t2i.pt"


def test_the_unified_smoke_run_keeps_the_ratio_of_the_paper() -> None:
    micro = load(CONFIGS / "smoke_unified.yaml").data.micro_batch
    assert (micro.mmu, micro.t2i) == (3, 48)


@pytest.mark.parametrize(
    ("name", "steps", "lr", "warmup", "batch"),
    [
        ("stage1_mmu", 5_000, 1e-3, 100, (256, 0)),
        ("stage1_t2i", 100_000, 8e-4, 1_000, (0, 720)),
        ("stage2_unified", 150_000, 1e-4, 0, (24, 384)),
    ],
)
def test_the_real_stages_are_table_5_of_the_paper(
    name: str, steps: int, lr: float, warmup: int, batch: tuple[int, int]
) -> None:
    config = load(CONFIGS / f"{name}.yaml")
    whole = config.data.global_batch
    assert whole is not None
    assert (config.trainer.max_steps, config.optim.lr, config.optim.warmup_steps) == (steps, lr, warmup)
    assert (whole.mmu, whole.t2i) == batch
    assert (config.optim.betas, config.optim.weight_decay, config.optim.clip_grad_norm) == ((0.9, 0.95), 0, 1)
    assert (config.hardware.devices, config.hardware.strategy, config.trainer.precision) == (8, "zero2", "bf16")
    assert (config.model.mmu_length, config.model.t2i_length) == (1182, 329)
    assert estimate_memory(config).needed < 79 * GIB  # an H100's


def test_the_real_model_has_the_published_sizes() -> None:
    with torch.device("meta"):
        model = OmniMamba(load(CONFIGS / "stage2_unified.yaml").model)
    needed = {published(name): tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = published_shapes()
    for name, shape in needed.items():
        assert shapes[name] == (1, *shape) if "pos_embed" in name else shape


@pytest.mark.parametrize(("hardware", "ranks"), [("gpu_node", 8), ("gpu_nodes", 16)])
def test_a_run_on_a_cluster_is_a_run_and_a_hardware_file(tmp_path: Path, hardware: str, ranks: int) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"include: [{CONFIGS / 'smoke_unified.yaml'}, {CONFIGS / 'hardware' / hardware}.yaml]\n")
    config = load(path)
    assert config.hardware.devices * config.hardware.nodes == ranks
    assert (config.hardware.strategy, config.trainer.precision) == ("zero2", "bf16")
    assert config.trainer.max_steps == load(CONFIGS / "smoke_unified.yaml").trainer.max_steps
