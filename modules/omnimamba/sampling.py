"""Choosing the next token. A draw is the inverse CDF at a uniform number that the caller passes, keyed by sample. So an
image does not depend on the batch, the rank or the world size it was made in."""

from collections.abc import Callable

import torch
from torch import Tensor

Pick = Callable[[Tensor, Tensor | None], Tensor]
"""Logits (B, V) and uniform numbers (B,), or None for greedy, to ids (B,)."""
ONE = 2**52
"""A probability of 1 in fixed point. Probabilities are float64, which holds such integers exactly."""


def choose(
    logits_BV: Tensor, uniforms_B: Tensor | None, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Token ids (B,). Greedy if ``uniforms_B`` is None; ``top_k=0`` and ``top_p=1`` keep all tokens.

    Raises:
        ValueError: a setting is outside its range.
    """
    if uniforms_B is None:
        return logits_BV.argmax(-1)
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0; ask for greedy decoding instead of 0")
    if top_k < 0:
        raise ValueError(f"top_k={top_k} must be 0 (all tokens) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]")
    # fixed point, about 16 digits: sums are exact in any order, so they are the same in every run, even on a GPU
    weights = ((logits_BV.double() / temperature).softmax(-1) * ONE).round().long()
    ids = None
    if top_k or top_p < 1:
        weights, ids = weights.sort(dim=-1, descending=True, stable=True)
    if top_k:
        weights = weights[:, :top_k]
    if top_p < 1:  # the smallest set whose sum reaches top_p: the sum before each kept token is below top_p
        before = weights.cumsum(-1) - weights
        weights = weights.masked_fill(before >= max(round(top_p * ONE), 1), 0)
    cumulative = weights.cumsum(-1)
    targets = (uniforms_B.double() * cumulative[:, -1]).long()
    rank = torch.searchsorted(cumulative, targets[:, None], right=True)
    rank = rank.clamp(max=weights.shape[-1] - 1)  # NaN must not become an invalid id
    return (rank if ids is None else ids.gather(-1, rank))[:, 0]


def guided(logits_BV: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: away from what is likely without a caption, (B, V) to (B/2, V).

    The first half of the rows has read captions, the second half empty ones. ``scale`` 1 gives the first half, 0 the
    second (Ho & Salimans 2022, in logits).
    """
    with_caption, without = logits_BV.float().chunk(2)
    return without + scale * (with_caption - without)


def pick_guided(pick: Pick, scale: float, logits_BV: Tensor, uniforms_B: Tensor | None) -> Tensor:
    """Ids (B,): one for each guided picture, given to both of its rows."""
    return pick(guided(logits_BV, scale), uniforms_B).repeat(2)
