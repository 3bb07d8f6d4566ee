"""Training objectives: what is minimised, given the model's logits and labels."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from modules.omnimamba.config import Task
from modules.omnimamba.model import Labelled


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of each task's loss; the paper's is 1:1."""

    mmu: float = 1.0
    """Weight of the MMU loss."""
    t2i: float = 1.0
    """Weight of the T2I loss."""


def task_losses(outputs: Mapping[Task, Labelled]) -> dict[Task, Tensor]:
    """Mean cross-entropy of each task over its own labelled positions, in nats, float32."""
    return {task: F.cross_entropy(out.logits.float(), out.labels) for task, out in outputs.items()}


def total_loss(losses: Mapping[Task, Tensor], weights: LossWeights) -> Tensor:
    """Weighted sum over the tasks. Each mean is over the task's own micro-batch, not over all tokens together."""
    terms = [getattr(weights, task) * loss for task, loss in losses.items()]
    total: Tensor = sum(terms[1:], terms[0])
    return total
