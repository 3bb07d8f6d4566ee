"""What a stage insists on."""

from typing import Any

import pytest
import torch

from modules.checkpoints import CheckpointError
from modules.optim import OptimConfig
from modules.stage_modules import STAGE_MODULES, StageModule
from modules.stages import StageConfig
from tests.unit.modules.omnimamba.conftest import build


@pytest.fixture
def stage() -> StageModule:
    config = StageConfig(name="unified_finetune")
    return STAGE_MODULES[config.name](build(), config, OptimConfig(), max_steps=1, seed=0)


class Trainer:
    """What a stage asks of its trainer when a checkpoint is loaded."""

    accumulate_grad_batches = 1


def checkpoint_of(stage: StageModule) -> dict[str, Any]:
    progress = {"ready": 1, "started": 1, "processed": 1, "completed": 1}
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"current": progress}}}
    checkpoint = {"state_dict": stage.state_dict(), "global_step": 1, "loops": loops}
    stage.on_save_checkpoint(checkpoint)
    return checkpoint


def test_a_checkpoint_that_fits_by_chance_is_refused(stage: StageModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of trained parameters, but others: torch would put each moment to some other parameter."""
    monkeypatch.setattr(stage, "_trainer", Trainer())
    checkpoint = checkpoint_of(stage)
    stage.on_load_checkpoint(checkpoint)
    for odd in (["image_table.weight"], list(reversed(checkpoint["stage"]["trained"]))):
        changed = checkpoint | {"stage": {"name": "unified_finetune", "trained": odd}}
        with pytest.raises(CheckpointError, match=r"optimizer trains other parameters than this run: .* differs"):
            stage.on_load_checkpoint(changed)
    changed = checkpoint | {"state_dict": checkpoint["state_dict"] | {"model.t2i_positions": torch.zeros(3)}}
    with pytest.raises(CheckpointError, match=r"the checkpoint does not fit the model: model\.t2i_positions is \(3,\)"):
        stage.on_load_checkpoint(changed)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
def test_a_parameter_that_was_cast_is_refused(stage: StageModule, hook: str) -> None:
    getattr(stage, hook)()
    mixer = stage.model.backbone.layers[1].mixer
    mixer.A_log.data = mixer.A_log.data.to(torch.bfloat16)
    message = r"1 parameters are not in float32, for example backbone\.layers\.1\.mixer\.A_log \(torch\.bfloat16\)"
    with pytest.raises(ValueError, match=message):
        getattr(stage, hook)()
