"""Which configuration keys exist, and which one a wrong one may have meant."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from modules.reading import shown
from pipelines.run.declared import configuration_keys

_MOST_NEAR = 3


def unknown_keys(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """A problem for each key in nested ``values`` that no configuration has, with the names that are near."""
    known = configuration_keys()
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in known:
            near = " or ".join(near_keys(key))
            advice = f"did you mean {near}?" if near else "`python -m pipelines.keys` lists all of them"
            yield f"{key} (given: {shown(value)}): there is no such key; {advice}"
        elif isinstance(value, Mapping) and known[key].is_section:
            yield from unknown_keys(value, f"{key}.")


def is_key(key: str) -> bool:
    """Whether there is a key or section of this name."""
    return key in configuration_keys()


def near_keys(key: str) -> list[str]:
    """Known keys that ``key`` may have meant, the likeliest first: of this name elsewhere, or spelt alike."""
    known = configuration_keys()
    if key in known:
        return [key]
    section, last = _split(key)
    ends = [name for name in known if name.endswith(f".{key}")]
    siblings = {_split(name)[1]: name for name in known if _split(name)[0] == section}
    spelt_alike = get_close_matches(last, siblings, 1, 0.8) or get_close_matches(last, siblings, _MOST_NEAR, 0.65)
    here = [siblings[name] for name in spelt_alike]
    here = here or [siblings[name] for name in siblings if len(name) > 3 and last.startswith(name)]
    alike = get_close_matches(key, known, _MOST_NEAR, 0.85)
    elsewhere = [name for name in known if _split(name)[1] == last]
    spelt = get_close_matches(last, {_split(name)[1] for name in known}, 1, 0.85)
    others = [name for name in known if _split(name)[1] in spelt]
    found = ends or here or [name for name in alike if name in elsewhere] or elsewhere or alike or others
    return found[:_MOST_NEAR]


def _split(key: str) -> tuple[str, str]:
    section, _, last = key.rpartition(".")
    return section, last
