"""The shape of a YAML file, looked at before it is read: on some, parsers hang or crash."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

_DEEPEST = 50
"""Levels of nesting; libyaml crashes somewhere above 10,000."""
_MOST = 10_000
"""Values, once every alias is replaced by what it stands for."""


def shape_problem(path: Path) -> str | None:
    """Why no configuration looks like the YAML file ``path``, or None.

    It is a bare text, which would become a key; or it is nested too deeply, or its aliases stand for themselves or for
    too much.

    Raises:
        YAMLError, UnicodeDecodeError: it is not YAML.
    """
    with path.open(encoding="utf-8-sig") as file:
        return _problem(yaml.parse(file, Loader=yaml.SafeLoader))


def _problem(events: Iterator[Event]) -> str | None:
    open_: list[tuple[str | None, int]] = []  # anchor and values so far of each collection that has not ended
    sizes: dict[str, int] = {}  # values that each anchor stands for
    total = 0
    for event in events:
        if isinstance(event, ScalarEvent) and not open_:
            return "must hold keys and values at its top level"
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_]:
                return f"holds *{event.anchor} inside &{event.anchor} itself; write it out"
            total += sizes.get(event.anchor or "", 1)
        elif isinstance(event, NodeEvent):
            if isinstance(event, CollectionStartEvent):
                open_.append((event.anchor, total))
            total += 1
        if len(open_) > _DEEPEST:
            return f"nests lists or keys more than {_DEEPEST} deep; no configuration does"
        if total > _MOST:
            return f"holds more than {_MOST} values, once its aliases are replaced; no configuration does"
    return None
