"""Holds a run folder, so that no two processes ever write to it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from modules.locks import locked
from modules.run_files import LOCK
from pipelines.run.overrides import ConfigError


class HeldError(ConfigError):
    """Another process holds the run folder; trying again later may work."""


@contextmanager
def claim(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold a run folder, so that no two processes ever write to it; wait up to ``seconds`` for it.

    Raises:
        HeldError: another process still holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / LOCK, wait=seconds))
        except BlockingIOError as error:
            raise HeldError(f"another process holds run folder {folder}; wait for it") from error
        yield
