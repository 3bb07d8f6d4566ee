"""When checkpoints are saved, and how many are kept, as configured."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and how much to keep."""

    every_n_steps: int = 1000
    """Steps between two saves; the last step is always saved."""
    keep_last: int = 2
    """How many checkpoints are kept, beside the best."""
    best: str = ""
    """A measure's key in metrics.jsonl, such as ``eval_mini/pope/f1_macro``. The checkpoint of its best step is kept
    too."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Which value of ``best`` is the best."""
    background: bool = False
    """Write while training goes on, from a copy in host memory on rank 0. The copy is as large as the checkpoint."""
    on_error: Literal["go_on", "stop"] = "go_on"
    """What training does when a checkpoint cannot be written, for example on a full disk. The last checkpoint of a run
    must always be written, also if the run is told to stop."""
    max_errors: int = 3
    """This many failed checkpoints in a row end the run, even with ``go_on``."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = [
            f"checkpoint.{name}={getattr(self, name)} must be at least 1"
            for name in ("every_n_steps", "keep_last", "max_errors")
            if getattr(self, name) < 1
        ]
        if self.best and not self.best.startswith("eval"):
            found.append(f"checkpoint.best={self.best} must be a measure's key, such as eval/pope/f1_macro")
        return found
