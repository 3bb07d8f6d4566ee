"""The training stages: LightningModules that differ only in a few declared values (paper, section 3.4 and Fig. 4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from modules.checkpoints import CheckpointError, refuse_misfit
from modules.objectives import LossWeights, task_losses, total_loss
from modules.omnimamba.config import TASKS, Task
from modules.omnimamba.model import Batch, OmniMamba
from modules.optim import OptimConfig, build_optimizer
from modules.seeds import keyed_seed
from modules.trainable import TrainableReport, set_trainable


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


class StageModule(pl.LightningModule):
    """One stage of training. A subclass declares ``tasks`` and ``trainable``; nothing else differs.

    ``training_step`` returns the total loss and, under ``losses``, the loss of each task.
    """

    tasks: ClassVar[tuple[Task, ...]]
    trainable: ClassVar[tuple[str, ...]]

    def __init__(self, model: OmniMamba, config: StageConfig, optim: OptimConfig, *, max_steps: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.optim = optim
        self.max_steps = max_steps
        self.seed = seed
        self.report: TrainableReport = set_trainable(
            model, self.trainable, also_train=config.also_train, freeze=config.freeze
        )

    def on_fit_start(self) -> None:
        """Check the parameters as the strategy set them up."""
        self._check_precision()

    def on_train_start(self) -> None:
        """Check the parameters again after a checkpoint was loaded."""
        self._check_precision()

    def _check_precision(self) -> None:
        """Refuse parameters that were cast: a state-space model with A_log in bf16 learns something else.

        Raises:
            ValueError: a parameter is not in float32.
        """
        odd = [f"{name} ({p.dtype})" for name, p in self.model.named_parameters() if p.dtype != torch.float32]
        if odd:
            raise ValueError(
                f"{len(odd)} parameters are not in float32, for example {odd[0]}: a strategy or precision plugin has "
                "cast them. Use trainer.precision=bf16, which casts the computation and not the parameters"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step's randomness (LoRA dropout) by seed, step and rank, so there is no random state to save."""
        micro = batch_idx % self.trainer.accumulate_grad_batches
        torch.manual_seed(keyed_seed(self.seed, "step", self.trainer.global_step, micro, self.global_rank))

    def training_step(self, batch: Mapping[Task, Mapping[str, Tensor]], batch_idx: int) -> dict[str, Any]:
        """Run one forward pass for all tasks of the micro-batch."""
        inputs: Batch = {task: batch[task] for task in TASKS if task in self.tasks}
        losses = task_losses(self.model(inputs))
        loss = total_loss(losses, self.config.loss_weights)
        return {"loss": loss, "losses": {task: value.detach() for task, value in losses.items()}}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and its schedule, stepped once per optimizer step."""
        optimizer, schedule = build_optimizer(self.model, self.optim, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert the micro-step count to this run's accumulation, which depends on the number of ranks.

        Lightning would keep the old count, take steps out of phase with the data, and lose part of a batch.
        """
        if self._trainer is None:
            return
        self._refuse_misfit(checkpoint)
        taken = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        uncounted = (
            current["processed"] - current["completed"]
        )  # 1 in a batch's last hook; Lightning adds it on loading
        current.update(ready=taken, started=taken, processed=taken, completed=taken - uncounted)

    def _refuse_misfit(self, checkpoint: dict[str, Any]) -> None:
        """Report a misfit more clearly than torch does, and also one that torch would load by chance.

        Raises:
            CheckpointError: weights have other shapes, or the optimizer's state is of other parameters.
        """
        own = {name: getattr(p, "ds_shape", p.shape) for name, p in self.state_dict(keep_vars=True).items()}
        refuse_misfit(checkpoint["state_dict"], own, "the checkpoint")
        before, now = checkpoint["stage"]["trained"], list(self.report.names)
        if before != now:
            odd = sorted(set(before) ^ set(now)) or ["the order of all of them"]
            raise CheckpointError(
                f"the checkpoint's optimizer trains other parameters than this run: {odd[0]} differs, the first of "
                f"{len(odd)}. Keep stage.freeze and stage.also_train as they were, or start "
                "another run with init_from=[this run]"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the names of what this stage trained, so that a later stage can tell results from starting weights."""
        checkpoint["stage"] = {"name": self.config.name, "trained": list(self.report.names)}


class MMUPretrain(StageModule):
    """Stage 1, understanding: trains the projector and the MMU adapters."""

    tasks = ("mmu",)
    trainable = ("projector.*", "backbone.*.lora_?.mmu.*")


class T2IPretrain(StageModule):
    """Stage 1, generation: trains image vocabulary, caption projection, positions and the T2I adapters.

    The text embedding is trained too, as in the released code; ``stage.freeze: [text_embedding.*]`` freezes it.
    """

    tasks = ("t2i",)
    trainable = (
        "image_table.*",
        "image_mlp.*",
        "caption_projection.*",
        "t2i_positions",
        "text_embedding.*",
        "backbone.*.lora_?.t2i.*",
    )


class UnifiedFinetune(StageModule):
    """Stage 2: trains everything but the frozen encoders, on both tasks in every step."""

    tasks = ("mmu", "t2i")
    trainable = ("*",)


STAGES: dict[str, type[StageModule]] = {
    "mmu_pretrain": MMUPretrain,
    "t2i_pretrain": T2IPretrain,
    "unified_finetune": UnifiedFinetune,
}
