"""What a stage insists on."""

import pytest
import torch

from modules.optim import OptimConfig
from modules.stages import STAGES, StageConfig, StageModule
from tests.unit.modules.omnimamba.conftest import build


@pytest.fixture
def stage() -> StageModule:
    config = StageConfig(name="unified_finetune")
    return STAGES[config.name](build(), config, OptimConfig(), max_steps=1, seed=0)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
def test_a_parameter_that_was_cast_is_refused(stage: StageModule, hook: str) -> None:
    getattr(stage, hook)()
    mixer = stage.model.backbone.layers[1].mixer
    mixer.A_log.data = mixer.A_log.data.to(torch.bfloat16)
    message = r"1 parameters are not in float32, for example backbone\.layers\.1\.mixer\.A_log \(torch\.bfloat16\)"
    with pytest.raises(ValueError, match=message):
        getattr(stage, hook)()
