"""Metrics go to ``RUN/metrics.jsonl`` first, then to Weights & Biases, and to TensorBoard if it is asked for.

One object per log: {"step", "time", "attempt", name: value, ...}. If a step was logged twice, after a rollback, the
higher attempt counts.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image

from callbacks.tensorboard import TensorBoard
from callbacks.wandb_run import Report, TrackingConfig, WandbRun
from modules.files import write_file
from modules.json_lines import drop_torn_line, read_rows
from modules.run_files import METRICS, METRICS_REST

__all__ = ["Tracker", "TrackingConfig", "read_metrics"]

log = logging.getLogger(__name__)

Watch = Callable[[int, Mapping[str, float | None]], None]


class MetricsError(ValueError):
    """Rows of metrics.jsonl have no room on the disk."""


class Tracker:
    """Logs numbers, pictures and tables at a step. Made on every rank; only the one with ``write=True`` does anything.

    A full disk and W&B do not stop training: rows stay in memory meanwhile, and W&B runs in a separate thread.
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
        report: Report = log.info,
        watch: Watch = lambda step, metrics: None,
    ):
        """``report`` is called once with the state of W&B; ``watch`` is called with each log."""
        self.folder = folder
        self.attempt = attempt
        self.watch = watch
        self._file: IO[bytes] | None = None
        self._pending, self._done = b"", 0
        self._told = False
        self._wandb: WandbRun | None = None
        self._tensorboard: TensorBoard | None = None
        if not write:
            return
        drop_torn_line(folder / METRICS)
        self._file = (folder / METRICS).open("ab", buffering=0)
        self._take_rest()
        if config.tensorboard:
            self._tensorboard = TensorBoard(folder, attempt)
        if config.wandb == "disabled":
            report(f"W&B is disabled; metrics are in {folder}")
        else:
            self._wandb = WandbRun(folder, config, name=name, run_id=run_id, settings=settings, report=report)

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Log ``metrics`` at ``step``; None and non-finite numbers are null in the file."""
        if self._file is None:
            return
        finite = {name: value if _is_finite(value) else None for name, value in metrics.items()}
        row = {"step": step, "time": round(time.time(), 3), "attempt": self.attempt, **finite}
        self._pending += json.dumps(row).encode() + b"\n"
        self._write()
        self.watch(step, metrics)
        known = {name: value for name, value in metrics.items() if value is not None}
        self._mirror(step, lambda: known)
        if self._tensorboard is not None:
            self._tensorboard.log(step, known)

    def log_images(self, step: int, key: str, images: Sequence[Image.Image], captions: Sequence[str]) -> None:
        """Log pictures with their captions under ``key``."""

        def row() -> dict[str, Any]:
            import wandb

            return {key: [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]}

        self._mirror(step, row)
        if self._tensorboard is not None:
            self._tensorboard.log_images(step, key, images)

    def log_table(self, step: int, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a cell may be a PIL image."""

        def row() -> dict[str, Any]:
            import wandb

            cells = [[wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row] for row in rows]
            return {key: wandb.Table(columns=list(columns), data=cells)}

        self._mirror(step, row)

    def log_files(self, name: str, kind: str, path: Path) -> None:
        """Log the file ``path``, or all files of the folder ``path``, as a W&B artifact. They are uploaded without a
        copy, so they must not change."""

        def keep(run: Any) -> None:
            artifact = _artifact(run.id, name, kind)
            if path.is_dir():
                artifact.add_dir(str(path), policy="immutable")
            else:
                artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._do(keep)

    def log_checkpoint(self, name: str, manifest: str, origins: Sequence[str] = ()) -> None:
        """Log a checkpoint as an artifact that holds only its manifest. The hashes identify the files, wherever they
        are stored.

        ``origins`` say what the run started from.
        """

        def keep(run: Any) -> None:
            artifact = _checkpoint(run.id, manifest, {"checkpoint": name, "init_from": list(origins)})
            run.log_artifact(artifact, aliases=["latest", name])

        self._do(keep)

    def use_checkpoint(self, run_id: str, manifest: str) -> None:
        """Log that this run started from a checkpoint of run ``run_id``: the edge in W&B's lineage. W&B cannot do this
        offline; then only the metadata of this run's own checkpoints name it."""

        def use(run: Any) -> None:
            if not run.offline:
                run.use_artifact(_checkpoint(run_id, manifest, {}))

        self._do(use)

    def require_written(self) -> None:
        """Called before a run is complete.

        Raises:
            MetricsError: rows still have no room.
        """
        if self._file is None or self._write():
            return
        rows = self._left().count(b"\n")
        raise MetricsError(
            f"{self.folder / METRICS} has no room for {rows} rows, which {METRICS_REST} holds if there is room for it: "
            "make room, and start the same command again to complete the run"
        )

    def close(self, exit_code: int = 0, *, preempted: bool = False) -> None:
        """Flush, and end the W&B run; see `WandbRun.close`. Rows without room are kept in `METRICS_REST`."""
        if self._file is not None:
            if not self._write():
                self._keep_rest()
            self._file.close()
            self._file = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.close(exit_code, preempted=preempted)
            self._wandb = None

    def _write(self) -> bool:
        """Append the pending rows. If a full disk cut a row short, its rest is written first once there is room."""
        assert self._file is not None
        try:
            while self._done < len(self._pending):
                self._done += self._file.write(self._pending[self._done :])
            self._pending, self._done = b"", 0
            return True
        except OSError as error:
            if not self._told:
                self._told = True
                log.error(
                    "%s cannot be written (%s): training goes on. New rows stay in memory until there is room again "
                    f"or the run ends; then {METRICS_REST} holds them. Make room on the disk",
                    *(self.folder / METRICS, error),
                )
            return False

    def _left(self) -> bytes:
        """The rows that are not wholly in the file."""
        return self._pending[self._pending.rfind(b"\n", 0, self._done) + 1 :]

    def _keep_rest(self) -> None:
        rows = self._left()
        try:
            drop_torn_line(self.folder / METRICS)
            write_file(self.folder / METRICS_REST, rows.decode())
        except OSError as error:
            log.error("%d rows of %s are lost: %s", rows.count(b"\n"), self.folder / METRICS, error)

    def _take_rest(self) -> None:
        """Move rows of an earlier attempt to where they belong."""
        rest = self.folder / METRICS_REST
        if rest.is_file():
            self._pending = rest.read_bytes()
            if self._write():
                rest.unlink()

    def _mirror(self, step: int, row: Callable[[], dict[str, Any]]) -> None:
        """Log the result of ``row`` to W&B. The W&B thread calls it, so it can neither slow nor fail training."""
        self._do(lambda run: run.log({**row(), "step": step, "attempt": self.attempt}))

    def _do(self, action: Callable[[Any], None]) -> None:
        if self._wandb is not None:
            self._wandb.put(action)


def _artifact(run_id: str, name: str, kind: str, metadata: dict[str, Any] | None = None) -> Any:
    import wandb

    return wandb.Artifact(f"{run_id}-{name}", type=kind, metadata=metadata)


def _checkpoint(run_id: str, manifest: str, metadata: dict[str, Any]) -> Any:
    """The artifact of a checkpoint. The run that wrote it and a run that starts from it give the same content, so W&B
    treats both as one artifact."""
    artifact = _artifact(run_id, "checkpoint", "checkpoint", metadata)
    with artifact.new_file("manifest.json") as file:
        file.write(manifest)
    return artifact


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """One row per step, in order, with all values logged at it. If one was logged twice, the higher attempt counts."""
    steps: dict[int, dict[str, Any]] = {}
    for row in sorted(read_rows(folder / METRICS, {"step": int, "attempt": int}), key=lambda row: row["attempt"]):
        steps.setdefault(row["step"], {}).update(row)
    return [steps[step] for step in sorted(steps)]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
