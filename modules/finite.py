"""Finds numbers in a training state that training could not go on from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modules.tensors import named_tensors

SQUARES = "exp_avg_sq"
"""AdamW's name for its mean of squares."""


@torch.no_grad()
def broken_tensor(state: Mapping[str, Any]) -> str | None:
    """Name the first tensor of ``state`` with NaN, infinity or, in AdamW's mean of squares, a negative number.

    None if there is none. Each tensor is read once, on its own device, and a device is waited for once.
    """
    found = [(name, tensor) for name, tensor in named_tensors(state) if tensor.is_floating_point() and tensor.numel()]
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in found:
        ends = torch.stack(list(torch.aminmax(tensor.detach()))).double()  # NaN anywhere makes both NaN
        least = 0.0 if name.endswith(f".{SQUARES}") else -torch.inf
        by_device.setdefault(tensor.device, []).append((name, ends.isfinite().all() & (ends[0] >= least)))
    broken = {
        name
        for each in by_device.values()
        for (name, _), good in zip(each, torch.stack([flag for _, flag in each]).tolist(), strict=True)
        if not good
    }
    return next((name for name, _ in found if name in broken), None)
