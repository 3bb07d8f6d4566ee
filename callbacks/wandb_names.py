"""What W&B takes as names: its own rules (wandb/sdk/wandb_settings.py), and the lengths that its server allows."""

import os
from collections.abc import Sequence

from modules.reading import shown

MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")
"""What W&B reads from WANDB_MODE."""
_FORBIDDEN = "/\\#?%:"
_FORBIDDEN_IN_ID = ":;,#?/'"
_LONGEST, _LONGEST_TAG = 128, 64


def place_problems(project: str, entity: str | None, project_key: str, entity_key: str) -> list[str]:
    """What W&B refuses of a project and of an entity, a user or a team; the keys name them in messages."""
    found = [_part_problem(project_key, project)]
    if entity is not None:
        found.append(_part_problem(entity_key, entity))
    if found[0] and project.count("/") == 1:
        found[0] += f"; a team or user has a key of its own, {entity_key}"
    return [each for each in found if each]


def tag_problems(tags: Sequence[str], key: str) -> list[str]:
    """What W&B refuses of tags."""
    return [
        f"{key}[{i}]={shown(tag)} has {len(tag)} characters, but W&B takes tags of 1 to {_LONGEST_TAG}; shorten it"
        for i, tag in enumerate(tags)
        if not 1 <= len(tag) <= _LONGEST_TAG
    ]


def shown_name(name: str) -> str:
    """A run's name as W&B shows it: as much as its server takes. A folder's name may be longer."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def length_problems(text: str | None, key: str) -> list[str]:
    """What W&B refuses of a group."""
    if text is None or len(text) <= _LONGEST:
        return []
    return [f"{key}={shown(text)} has {len(text)} characters, but W&B takes at most {_LONGEST}; shorten it"]


def id_problems(run_id: str, key: str) -> list[str]:
    """What W&B refuses of a run's id."""
    if not run_id or run_id != run_id.strip() or set(run_id) & set(_FORBIDDEN_IN_ID) or not run_id.isprintable():
        return [f"{key}={shown(run_id)} is no run id: W&B takes printable text without blanks around it or any of "
                f"{' '.join(_FORBIDDEN_IN_ID)}"]  # fmt: skip
    return length_problems(run_id, key)


def mode_problems() -> list[str]:
    """What W&B refuses of WANDB_MODE in the environment."""
    mode = os.environ.get("WANDB_MODE")
    if mode is None or mode in MODES:
        return []
    return [f"WANDB_MODE={shown(mode)} must be one of {', '.join(MODES)}; correct or unset it, or set tracking.wandb"]


def _part_problem(key: str, value: str) -> str:
    """Why ``value`` is not a part of an address at W&B, or ""."""
    if bad := sorted(set(value) & set(_FORBIDDEN)):
        return f"{key}={shown(value)} holds {' '.join(bad)}; W&B takes none of {' '.join(_FORBIDDEN)}"
    if not value.strip() or value != value.strip() or not value.isprintable():
        return f"{key}={shown(value)} must be printable text without blanks around it"
    return " ".join(length_problems(value, key))
