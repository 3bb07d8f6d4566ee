"""Texts in configurations: as typed on a command line, checked in YAML, read back as written, with ~ expanded."""

import json
import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from modules.reading import shown

_QUOTES = ("'", '"')


def kind_of(cls: type, key: str) -> Any:
    """The type of the dotted ``key`` in the dataclass ``cls``; None if there is no such key."""
    kind: Any = cls
    for name in key.split("."):
        kind = some(kind)
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return kind


def as_typed(kind: Any, typed: str) -> Any:
    """The value of an override for a key of the type ``kind``, if that is a text or a tuple of texts.

    A text is used as typed; only quotes around all of it are removed. In a list, every item is a text.

    Raises:
        LookupError: ``kind`` is neither.
        YAMLError: a list cannot be read.
    """
    if _is_text(some(kind)):
        return None if kind is not some(kind) and typed == "null" else _unquoted(typed)
    if _is_texts(some(kind)):
        return yaml.load(typed, yaml.BaseLoader)  # which reads every item as a text
    raise LookupError(kind)


def override(key: str, value: Any) -> str:
    """An override ``key=value`` that is read back as exactly ``value``: a text, a path, or plain data."""
    if isinstance(value, Path):
        value = f"./{value}" if str(value).startswith("~") else str(value)
    value = literally(value)
    if isinstance(value, str) and value[:1] not in _QUOTES and "\n" not in value:
        return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def literally(value: Any) -> Any:
    """Plain data for OmegaConf with literal texts, in which ``${`` does not begin an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)
    if isinstance(value, dict):
        return {key: literally(each) for key, each in value.items()}
    return [literally(each) for each in value] if isinstance(value, list | tuple) else value


def unquoted(cls: type, values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Problems with values that YAML read as numbers or booleans although their keys hold texts."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        kind, key = some(hints.get(name)), f"{prefix}{name}"
        if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
            yield from unquoted(kind, value, f"{key}.")
        elif _is_text(kind) or _is_texts(kind):
            for each in value if _is_texts(kind) and isinstance(value, list) else [value]:
                if isinstance(each, bool | int | float | bytes):
                    yield (
                        f"{key} is a text, but without quotes YAML reads its value as {shown(each)}; put it in "
                        'quotes, as in "007", "1e5" or "no"'
                    )


def at_home(value: Any, key: str = "") -> Any:
    """A copy of ``value``, a configuration or part of one, with ~ at the start of texts expanded to the home folder.

    Raises:
        ValueError: there is no such user.
    """
    if isinstance(value, str) and value.startswith("~"):
        found = os.path.expanduser(value)
        if found.startswith("~"):
            raise ValueError(
                f"{key}={value}: ~ stands for a home folder, but there is no such user; write the path out"
            )
        return found
    if is_dataclass(value) and not isinstance(value, type):
        prefix = f"{key}." if key else ""
        return replace(
            value, **{each.name: at_home(getattr(value, each.name), prefix + each.name) for each in fields(value)}
        )
    return tuple(at_home(each, key) for each in value) if isinstance(value, tuple) else value


def _unquoted(typed: str) -> str:
    """``typed`` without quotes around all of it, read as YAML reads quoted texts."""
    if len(typed) > 1 and typed[0] == typed[-1] and typed[0] in _QUOTES:
        for read in (json.loads, lambda text: yaml.load(text, yaml.BaseLoader)):
            try:
                found = read(typed)
            except (ValueError, yaml.YAMLError):
                continue
            if isinstance(found, str):
                return found
    return typed


def some(kind: Any) -> Any:
    """The type ``kind`` without None."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [each for each in get_args(kind) if each is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def _is_text(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is Literal and all(isinstance(each, str) for each in get_args(kind)))


def _is_texts(kind: Any) -> bool:
    return get_origin(kind) is tuple and all(each is Ellipsis or _is_text(each) for each in get_args(kind))
