"""The small MLPs between embeddings or vision features and the backbone."""

from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Sequential):
    """Linear - GELU - Linear - GELU - Linear, with biases: the vision projector, and the MLP after the image table."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__(
            nn.Linear(width_in, hidden),
            nn.GELU(),
            nn.Linear(hidden, width_out),
            nn.GELU(),
            nn.Linear(width_out, width_out),
        )


class CaptionProjection(nn.Module):
    """Linear - tanh-GELU - Linear without biases: turns text embeddings into a T2I caption."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y
