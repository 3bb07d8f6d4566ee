import torch

from modules.objectives import LossWeights, task_losses, total_loss
from modules.omnimamba.model import Labelled


def test_losses_are_means_per_task_and_the_total_their_weighted_sum() -> None:
    """Uniform logits over V classes cost log V, whatever the number of labels."""
    outputs = {
        "mmu": Labelled(torch.zeros(3, 10), torch.tensor([1, 2, 3])),
        "t2i": Labelled(torch.zeros(48, 100), torch.zeros(48, dtype=torch.long)),
    }
    losses = task_losses(outputs)
    torch.testing.assert_close(losses["mmu"], torch.tensor(10.0).log())
    torch.testing.assert_close(losses["t2i"], torch.tensor(100.0).log())
    total = total_loss(losses, LossWeights(mmu=2.0, t2i=0.5))
    torch.testing.assert_close(total, 2 * torch.tensor(10.0).log() + 0.5 * torch.tensor(100.0).log())
