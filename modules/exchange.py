"""Plain values between the ranks of a process group, as JSON: nothing that comes over the network is unpickled."""

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MOST_BYTES = 2**26
"""Longest message that a rank accepts."""


def gathered(value: Any) -> list[Any]:
    """``value``, plain data, of every rank in order. A collective call; a single process keeps its value.

    Raises:
        ValueError: a rank sends more than `MOST_BYTES`.
    """
    if not _several():
        return [value]
    content = _encoded(value)
    sizes = [torch.zeros(1, dtype=torch.int64, device=content.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(content)], device=content.device))
    lengths = [_checked(int(size)) for size in sizes]
    padded = content.new_zeros(max(lengths))
    padded[: len(content)] = content
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [_decoded(part[:length]) for part, length in zip(parts, lengths, strict=True)]


def from_rank_0(value: Any) -> Any:
    """Rank 0's ``value``, plain data, on every rank. A collective call; a single process keeps its value.

    Raises:
        ValueError: it is longer than `MOST_BYTES`.
    """
    if not _several():
        return value
    content = _encoded(value)
    size = torch.tensor([len(content)], device=content.device)
    dist.broadcast(size, 0)
    length = _checked(int(size))  # on rank 0 too, or it would send to ranks that refuse
    if dist.get_rank():
        content = content.new_zeros(length)
    dist.broadcast(content, 0)
    return _decoded(content)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _encoded(value: Any) -> Tensor:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL sends nothing from host memory
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)


def _decoded(content: Tensor) -> Any:
    return json.loads(content.cpu().numpy().tobytes())


def _checked(size: int) -> int:
    if not 0 <= size <= MOST_BYTES:
        raise ValueError(f"a rank sends {size} bytes, more than the {MOST_BYTES} that are accepted")
    return size
