"""Small things about files that several parts need."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_name(step: int) -> str:
    """Name of the folders that belong to an optimizer step, for example step-000000020."""
    return f"step-{step:09d}"


@cache
def code_version() -> str:
    """The git commit of the code, with "+changes" if the tree has some; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if dirty.strip() else "")
