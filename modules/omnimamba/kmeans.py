"""k-means over patches in integer pixel values: exact, so the same on every machine.

Centres are integers in [0, 255], so every squared distance is an integer that float64 holds exactly. No result depends
on batch size, threads, device or reduced-precision settings.
Shapes: P patches, K centres, D pixel values of one patch.
"""

import torch
from torch import Tensor

_CHUNK = 16_384
"""Patches compared with the centres at once: 64 MB of distances at 512 centres."""


@torch.no_grad()
def fit_centres(patches_PD: Tensor, *, count: int, seed: int, iterations: int, max_patches: int) -> Tensor:
    """``count`` centres of ``patches_PD`` (both uint8): k-means++ and at most ``iterations`` of Lloyd's algorithm.

    Equal patches are counted once, with a weight. If there are more than ``max_patches`` different ones, a random
    subset is used. A cluster that loses all its patches moves to the patch with the highest cost.

    Raises:
        ValueError: there are fewer different patches than centres.
    """
    generator = torch.Generator().manual_seed(seed)
    patches_PD, weights_P = _distinct(patches_PD.cpu(), max(max_patches, count), count, generator)
    centres_KD = _spread_out(patches_PD, weights_P, count, generator)
    for _ in range(iterations):
        codes_P, cost_P = nearest(patches_PD, centres_KD)
        moved_KD = _means(patches_PD, weights_P, codes_P, cost_P, count)
        if torch.equal(moved_KD, centres_KD):
            break
        centres_KD = moved_KD
    return centres_KD


def nearest(patches_PD: Tensor, centres_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each patch's nearest centre, and the squared distance to it. A tie goes to the first centre."""
    centres = centres_KD.double()
    half_norms_K = centres.square().sum(1) / 2
    codes, costs = [], []
    for start in range(0, len(patches_PD), _CHUNK):
        patches = patches_PD[start : start + _CHUNK].double()
        # half the squared distance minus the patch's own norm: this needs the fewest passes over the (P, K) table
        half_PK = torch.addmm(half_norms_K, patches, centres.T, alpha=-1)
        smallest, index = half_PK.min(1)
        codes.append(index)
        costs.append(patches.square().sum(1) + 2 * smallest)
    return torch.cat(codes), torch.cat(costs)


def _distinct(patches_PD: Tensor, limit: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The different patches, at most ``limit`` of them, and how often each occurs."""
    width = patches_PD.shape[1]
    rows = patches_PD.contiguous().numpy().view(f"V{width}").ravel()
    # a dictionary keeps the order of first occurrence and is faster here than sorting 48-byte rows
    counts: dict[bytes, int] = {}
    for row in rows.tolist():
        counts[row] = counts.get(row, 0) + 1
    if len(counts) < count:
        raise ValueError(
            f"the images hold {len(counts)} different patches, fewer than codebook_size={count}; "
            "lower it or fit on more images"
        )
    distinct = torch.frombuffer(bytearray(b"".join(counts)), dtype=torch.uint8).view(-1, width)
    weights = torch.tensor(list(counts.values()), dtype=torch.float64)
    if len(distinct) > limit:
        kept = torch.randperm(len(distinct), generator=generator)[:limit]
        distinct, weights = distinct[kept], weights[kept]
    return distinct, weights


def _spread_out(patches_PD: Tensor, weights_P: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: draw each initial centre with probability proportional to weight times squared distance so far."""
    patches = patches_PD.double()
    norms_P = patches.square().sum(1)
    cost_P = torch.ones_like(norms_P)
    chosen: list[int] = []
    for number in range(count):
        # all numbers are integers, so the sums are exact and the draw is the same everywhere
        cumulative = (cost_P * weights_P).long().cumsum(0)
        draw = torch.randint(int(cumulative[-1]), (), generator=generator)
        index = int(torch.searchsorted(cumulative, draw, right=True))
        chosen.append(index)
        to_new_P = norms_P + norms_P[index] - 2 * (patches @ patches[index])
        cost_P = to_new_P if number == 0 else torch.minimum(cost_P, to_new_P)
    return patches_PD[chosen]


def _means(patches_PD: Tensor, weights_P: Tensor, codes_P: Tensor, cost_P: Tensor, count: int) -> Tensor:
    """Each cluster's weighted mean in integer pixel values. Empty clusters get the patches with the highest cost."""
    counts_K = torch.zeros(count, dtype=torch.float64).index_add_(0, codes_P, weights_P)
    sums_KD = torch.zeros(count, patches_PD.shape[1], dtype=torch.float64)
    sums_KD.index_add_(0, codes_P, patches_PD.double() * weights_P[:, None])
    centres_KD = (sums_KD / counts_K.clamp(min=1)[:, None]).round().to(torch.uint8)
    empty_K = (counts_K == 0).nonzero().squeeze(1)
    costliest = (cost_P * weights_P).argsort(descending=True, stable=True)[: len(empty_K)]
    centres_KD[empty_K] = patches_PD[costliest]
    return centres_KD
