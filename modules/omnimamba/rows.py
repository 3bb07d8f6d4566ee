"""Rows: sequences of different lengths laid end to end, and taken apart again.

Shapes: B sequences, L positions of the longest, R positions of the row, D d_model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CPU = torch.device("cpu")
"""Named where numbers are made, because another device may be torch's default."""


def on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Small numbers of the CPU on ``device``, without waiting for the copy."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def sequence_ids(lengths: Sequence[int], device: torch.device) -> Tensor:
    """The number of the sequence of each position, int32, (R,)."""
    numbers = torch.arange(len(lengths), dtype=torch.int32, device=CPU)
    return on_device(numbers.repeat_interleave(torch.tensor(lengths, device=CPU)), device)


def concatenated(x_BLD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Concatenate the first ``lengths`` positions of the sequences, (R, D)."""
    x_RD = x_BLD.flatten(0, 1)
    return x_RD if min(lengths) == x_BLD.shape[1] else x_RD.index_select(0, _places(lengths, x_RD.device))


def stacked(x_RD: Tensor, lengths: Sequence[int]) -> Tensor:
    """The inverse: (R, D) to sequences (B, L, D), padded with zeros to the longest."""
    shape = (len(lengths), max(lengths), x_RD.shape[1])
    if min(lengths) == max(lengths):
        return x_RD.reshape(shape)
    empty = x_RD.new_zeros((shape[0] * shape[1], shape[2]))
    return empty.index_copy(0, _places(lengths, x_RD.device), x_RD).view(shape)


def _places(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Where the positions of a row are in the padded sequences, laid end to end, (R,).

    One index for all: a copy of each sequence would cost a kernel each, hundreds a step for small models.
    """
    inside = torch.arange(max(lengths), device=CPU) < torch.tensor(lengths, device=CPU)[:, None]
    return on_device(inside.flatten().nonzero()[:, 0], device)
