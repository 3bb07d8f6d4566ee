"""What W&B keeps of a run on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def wandb_entries(segment: Path) -> list[dict[str, Any]]:
    """All that an offline attempt wrote down, in order."""
    tool = Path(sys.executable).with_name("wandb")
    read = subprocess.run([tool, "leet", "inspect", "--json", segment], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in read.stdout.splitlines()]


def wandb_history(segment: Path) -> list[dict[str, Any]]:
    """What an offline attempt logged, a row each time."""
    return [entry["history"]["item"] for entry in wandb_entries(segment) if entry["type"] == "history"]
