"""Every configuration that comes with the project loads, and its model can be built and trained."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from modules.omnimamba.model import OmniMamba
from modules.stages import STAGES
from modules.trainable import set_trainable
from pipelines.config import load

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


def test_the_unified_smoke_run_keeps_the_ratio_of_the_paper() -> None:
    micro = load(CONFIGS / "smoke_unified.yaml").data.micro_batch
    assert (micro.mmu, micro.t2i) == (3, 48)


@pytest.mark.parametrize(("hardware", "ranks"), [("gpu_node", 8), ("gpu_nodes", 16)])
def test_a_run_on_a_cluster_is_a_run_and_a_hardware_file(tmp_path: Path, hardware: str, ranks: int) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"include: [{CONFIGS / 'smoke_unified.yaml'}, {CONFIGS / 'hardware' / hardware}.yaml]\n")
    config = load(path)
    assert config.hardware.devices * config.hardware.nodes == ranks
    assert (config.hardware.strategy, config.trainer.precision) == ("zero2", "bf16")
    assert config.trainer.max_steps == load(CONFIGS / "smoke_unified.yaml").trainer.max_steps
