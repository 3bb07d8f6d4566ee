"""The training stages, declared: which tasks they have, and what they train (paper, section 3.4 and Fig. 4).

`modules.stage_modules` makes a LightningModule of each. Whatever only reads configurations needs no Lightning.
"""

from dataclasses import dataclass, field
from typing import Literal

from modules.objectives import LossWeights
from modules.omnimamba.config import TASKS, Task


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Which stage to train, and what this run changes in it."""

    name: Literal["mmu_pretrain", "t2i_pretrain", "unified_finetune"]
    """The stage; it says which tasks are trained, and which parameters."""
    also_train: tuple[str, ...] = ()
    """Patterns of parameters to train in addition to the paper's set, for a run from scratch."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameters to leave out of the paper's set, for example text_embedding.* in T2I pre-training."""
    loss_weights: LossWeights = field(default_factory=LossWeights)

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        return [
            f"stage.loss_weights.{task}={getattr(self.loss_weights, task)} must be above 0: a stage has all its tasks"
            for task in TASKS
            if not getattr(self.loss_weights, task) > 0
        ]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage is; nothing else differs between stages."""

    tasks: tuple[Task, ...]
    trainable: tuple[str, ...]
    """Patterns of the parameters that it trains."""


STAGES: dict[str, Stage] = {
    "mmu_pretrain": Stage(tasks=("mmu",), trainable=("projector.*", "backbone.*.lora_?.mmu.*")),
    "t2i_pretrain": Stage(
        tasks=("t2i",),
        trainable=(
            "image_table.*",
            "image_mlp.*",
            "caption_projection.*",
            "t2i_positions",
            # trained too, as in the released code; stage.freeze: [text_embedding.*] freezes it
            "text_embedding.*",
            "backbone.*.lora_?.t2i.*",
        ),
    ),
    "unified_finetune": Stage(tasks=("mmu", "t2i"), trainable=("*",)),
}
