"""Small things about files that several parts need."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_name(step: int) -> str:
    """Name of the folders that belong to an optimizer step, for example step-000000020."""
    return f"step-{step:09d}"
