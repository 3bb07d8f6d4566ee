"""Token-by-token generation after a prefill, with weights prepared once for all tokens.

Adapters are merged into the weights, weights are cast, and the image MLP is applied to its whole table. So a token
costs little more than reading the weights once. On a GPU, the work of a token is recorded as a CUDA graph: it has
hundreds of small kernels, and launching them takes many times longer than running them.

Shapes: B batch, D d_model, V ids that can be chosen, U ids that can be read, I image tokens, P positions.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.omnimamba.backbone import Backbone, BackboneState
from modules.omnimamba.config import Task
from modules.omnimamba.sampling import Pick, choose
from modules.unheard import unheard

EAGER = 2
"""Tokens made before the graph is recorded, while kernels are compiled and libraries are set up."""


class NotFiniteError(ValueError):
    """The model computes non-finite numbers, so its tokens mean nothing."""


class Decoder:
    """A snapshot of a task's weights, prepared for generating any number of tokens."""

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        compute: torch.dtype,
        *,
        inputs_UD: Tensor,
        head_VD: Tensor,
        positions_PD: Tensor,
    ) -> None:
        self.inputs, self.positions, self.head = inputs_UD, positions_PD, head_VD.to(compute)
        self._backbone, self._weights = backbone, backbone.step_weights(task, compute)

    def choose(self, hidden_BD: Tensor, uniforms_B: Tensor | None = None, pick: Pick = choose) -> Tensor:
        """The token ids (B,) that follow ``hidden_BD``, greedy or sampled."""
        return pick(F.linear(hidden_BD.to(self.head.dtype), self.head), uniforms_B)

    def step(self, token_B: Tensor, position_D: Tensor, state: BackboneState) -> Tensor:
        """Hidden states (B, D) of ``token_B`` at the position with embedding ``position_D``; updates ``state``."""
        return self._backbone.step(F.embedding(token_B, self.inputs) + position_D, self._weights, state)

    @staticmethod
    def check(hidden_BD: Tensor) -> None:
        """Check the last hidden states of a sequence, which depend on everything before them.

        Raises:
            NotFiniteError: they are not finite.
        """
        if not bool(hidden_BD.isfinite().all()):
            raise NotFiniteError(
                "the model computes non-finite numbers, so its tokens mean nothing: its weights have diverged "
                "or are damaged. Use an earlier checkpoint, or compute in float32 (trainer.precision)"
            )

    def draw(
        self,
        hidden_BD: Tensor,
        state: BackboneState,
        *,
        start: int,
        count: int,
        uniforms_BI: Tensor | None,
        pick: Pick,
        on_token: Callable[[], None] = unheard,
    ) -> Tensor:
        """``count`` tokens (B, count) after a prompt that ended before position ``start`` with ``hidden_BD``.

        ``on_token`` is called after each of them; a GPU may still be at an earlier one.

        Raises:
            NotFiniteError: see `check`.
        """
        # a graph always reads and writes the memory it was recorded with
        hidden, position = hidden_BD.clone(), self.positions[start].clone()
        token = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        draw = None if uniforms_BI is None else uniforms_BI[:, 0].clone()

        def advance() -> None:
            token.copy_(self.choose(hidden, draw, pick))
            hidden.copy_(self.step(token, position, state))

        tokens: list[Tensor] = []
        for number in range(count - 1):
            position.copy_(self.positions[start + number])
            if draw is not None and uniforms_BI is not None:
                draw.copy_(uniforms_BI[:, number])
            if number == EAGER and hidden.is_cuda:
                advance = _recorded(advance)
            advance()
            tokens.append(token.clone())
            on_token()
        self.check(hidden)
        last = None if uniforms_BI is None else uniforms_BI[:, count - 1]
        tokens.append(self.choose(hidden, last, pick))
        on_token()
        return torch.stack(tokens, dim=1)


def _recorded(work: Callable[[], None]) -> Callable[[], None]:
    """Record the GPU launches of ``work`` once; return a function that replays them all at once."""
    graph = torch.cuda.CUDAGraph()
    # other threads, which pin batches or watch NCCL, may keep using the GPU while this one records
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
