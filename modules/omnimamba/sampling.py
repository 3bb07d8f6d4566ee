"""Choosing the next token. A draw is the inverse CDF at a uniform number that the caller brings, keyed by sample: so
an image does not depend on the batch, the rank or the world size it was made in."""

import torch
from torch import Tensor


def choose(
    logits_BV: Tensor, uniforms_B: Tensor | None, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Token ids (B,). Greedy where ``uniforms_B`` is None; ``top_k=0`` and ``top_p=1`` leave all tokens in.

    Raises:
        ValueError: a setting outside its range.
    """
    if uniforms_B is None:
        return logits_BV.argmax(-1)
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0; ask for greedy decoding instead of 0")
    if top_k < 0:
        raise ValueError(f"top_k={top_k} must be 0 (all tokens) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]")
    # float64: the sum of a large vocabulary's probabilities must not fall short of a uniform close to 1
    probabilities, ids = (logits_BV.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_k:
        probabilities = probabilities[:, :top_k]
    if top_p < 1:  # the smallest set whose sum reaches top_p: what comes before a token is still below it
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    targets = uniforms_B.double() * cumulative[:, -1]
    rank = torch.searchsorted(cumulative, targets[:, None], right=True).clamp(
        max=(probabilities > 0).sum(-1, keepdim=True) - 1
    )
    return ids.gather(-1, rank)[:, 0]
