"""Metrics go to ``RUN/metrics.jsonl`` first and to Weights & Biases beside it.

One object per log: {"step", "time", "attempt", name: value, ...}. After a rollback the higher attempt of a step counts.
"""

import json
import logging
import math
import netrc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from PIL import Image

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
WANDB_HOST = "api.wandb.ai"


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides the run folder."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto``: what WANDB_MODE says; without it, online where an API key is found and offline otherwise."""
    project: str = "omnimamba"
    group: str | None = None
    tags: tuple[str, ...] = ()


class Tracker:
    """Logs numbers, pictures and tables at a step. Made on every rank; only the one with ``write=True`` does anything.

    A failure of Weights & Biases is reported once and then ignored; the local file goes on.
    """

    def __init__(
        self,
        folder: Path,
        config: TrackingConfig,
        *,
        name: str,
        run_id: str,
        attempt: int,
        settings: dict[str, Any],
        write: bool,
    ):
        self.folder = folder
        self.attempt = attempt
        self._file: IO[str] | None = None
        self._wandb: Any = None
        if not write:
            return
        drop_torn_line(folder / METRICS)
        self._file = (folder / METRICS).open("a")
        if config.wandb != "disabled":
            self._start_wandb(config, name, run_id, settings)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log ``metrics`` at ``step``; a number that does not exist or is not finite is null in the file."""
        if self._file is None:
            return
        finite = {name: value if _is_finite(value) else None for name, value in metrics.items()}
        row = {"step": step, "time": round(time.time(), 3), "attempt": self.attempt, **finite}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._mirror(step, lambda: {name: value for name, value in metrics.items() if value is not None})

    def log_images(self, step: int, key: str, images: Sequence[Image.Image], captions: Sequence[str]) -> None:
        """Log pictures with their captions under ``key``."""

        def row() -> dict[str, Any]:
            import wandb

            return {key: [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]}

        self._mirror(step, row)

    def log_table(self, step: int, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a cell may be a PIL image."""

        def row() -> dict[str, Any]:
            import wandb

            cells = [[wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row] for row in rows]
            return {key: wandb.Table(columns=list(columns), data=cells)}

        self._mirror(step, row)

    def log_files(self, name: str, kind: str, folder: Path) -> None:
        """Keep all files of ``folder`` as an artifact of W&B."""

        def keep() -> None:
            import wandb

            artifact = wandb.Artifact(f"{self._wandb.id}-{name}", type=kind)
            artifact.add_dir(str(folder))
            self._wandb.log_artifact(artifact)

        self._attempt(keep)

    def close(self) -> None:
        """Flush and end the W&B run."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._wandb is not None:
            run, self._wandb = self._wandb, None
            try:
                run.finish()
            except Exception as error:  # noqa: BLE001  # as above
                log.warning("W&B could not end its run (%s); the metrics are in %s", error, self.folder / METRICS)

    def _start_wandb(self, config: TrackingConfig, name: str, run_id: str, settings: dict[str, Any]) -> None:
        import wandb

        mode = tracking_mode(config)
        try:
            self._wandb = wandb.init(
                project=config.project,
                group=config.group,
                tags=list(config.tags),
                name=name,
                id=run_id,
                resume="allow" if mode == "online" else None,
                dir=self.folder,
                config=settings,
                mode=mode,
                settings=wandb.Settings(init_timeout=15, silent=True, console="off"),
            )
            self._wandb.define_metric("step")
            self._wandb.define_metric("*", step_metric="step")
        except Exception as error:  # noqa: BLE001  # whatever W&B raises, training goes on with the local file
            log.warning("W&B cannot be reached (%s); metrics go to %s alone", error, self.folder / METRICS)
            self._wandb = None

    def _mirror(self, step: int, row: Callable[[], dict[str, Any]]) -> None:
        """Log what ``row`` makes to W&B; it is made here, so that a failure to make it stops nothing either."""
        self._attempt(lambda: self._wandb.log({**row(), "step": step, "attempt": self.attempt}))

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Do something with W&B; without one, nothing. After a failure there is none."""
        if self._wandb is None:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001  # as above
            log.warning("W&B failed (%s); metrics go on in %s alone", error, self.folder / METRICS)
            self._wandb = None


def tracking_mode(config: TrackingConfig) -> Literal["online", "offline", "disabled"] | None:
    """How W&B will be used; None: as WANDB_MODE says, which it reads itself."""
    if config.wandb != "auto":
        return config.wandb
    if "WANDB_MODE" in os.environ:
        return None
    return "online" if _has_key() else "offline"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """One row a step, in order, with all that was logged at it; of a value logged twice the higher attempt's counts."""
    steps: dict[int, dict[str, Any]] = {}
    for row in sorted(_rows(folder), key=lambda row: row["attempt"]):
        steps.setdefault(row["step"], {}).update(row)
    return [steps[step] for step in sorted(steps)]


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    return read_lines(path) if path.is_file() else []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that one line is appended to for each; what follows the last newline, a kill cut short.

    Raises:
        ValueError: a line is no object.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "step" not in row:
            raise ValueError(f"line {number} of {path} is damaged; delete that line")
        rows.append(row)
    return rows


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left without its end."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
