"""Finds tensors in nested data."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, lists and tuples, each with its dotted place, such as ``state.0.exp_avg``."""
    if isinstance(value, Tensor):
        yield name, value
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, each in items:
        yield from named_tensors(each, f"{name}.{key}" if name else str(key))
