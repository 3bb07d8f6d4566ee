"""TensorBoard as a second tracker: numbers and pictures, in ``RUN/tensorboard``."""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

log = logging.getLogger(__name__)
FOLDER = "tensorboard"
FLUSH_SECONDS = 10


def tensorboard_problems() -> list[str]:
    """Why TensorBoard cannot be used here, with the way out."""
    if find_spec("tensorboard") is not None:
        return []
    return ["tracking.tensorboard=true needs tensorboard, which is not installed: pip install '.[tensorboard]'"]


class TensorBoard:
    """Event files of one attempt. The first failure is told, and ends them: the run folder has all the data."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.folder, self.attempt = folder / FOLDER, attempt
        self._writer: Any = None
        self._failed = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers at ``step``."""
        self._do(step, lambda writer: [writer.add_scalar(name, value, step) for name, value in metrics.items()])

    def log_images(self, step: int, key: str, images: Sequence[Image.Image]) -> None:
        """Log pictures of one size at ``step``."""

        def add(writer: Any) -> None:
            pixels = np.stack([np.array(image.convert("RGB")) for image in images])
            writer.add_images(key, pixels, step, dataformats="NHWC")

        self._do(step, add)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._guarded(self._writer.close)
            self._writer = None

    def _do(self, step: int, action: Callable[[Any], Any]) -> None:
        if not self._failed:
            self._guarded(lambda: action(self._opened(step)))

    def _opened(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # what an earlier attempt logged from here on is not shown again
            purge = step if self.attempt > 1 else None
            self._writer = SummaryWriter(str(self.folder), purge_step=purge, flush_secs=FLUSH_SECONDS)
        return self._writer

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  # whatever fails there must not end a training
            self._failed = True
            log.warning("%s gets no more data: %s. Training goes on", self.folder, error)
