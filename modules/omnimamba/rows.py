"""Rows: sequences of different lengths laid end to end, and taken apart again.

Shapes: B sequences, L positions of the longest, R positions of the row, D d_model.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def concatenated(x_BLD: Tensor, lengths: list[int]) -> Tensor:
    """Concatenate the first ``lengths`` positions of the sequences, (R, D)."""
    if min(lengths) == x_BLD.shape[1]:
        return x_BLD.flatten(0, 1)
    return torch.cat([x_LD[:n] for x_LD, n in zip(x_BLD, lengths, strict=True)])


def stacked(x_RD: Tensor, lengths: list[int]) -> Tensor:
    """The inverse: (R, D) to sequences (B, L, D), padded with zeros to the longest."""
    if len(set(lengths)) == 1:
        return x_RD.reshape(len(lengths), lengths[0], x_RD.shape[1])
    return pad_sequence(list(torch.split(x_RD, lengths)), batch_first=True)
