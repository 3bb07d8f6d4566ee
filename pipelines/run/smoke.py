"""A trial of a configuration: two steps, one save and one small evaluation, of which nothing is kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from pipelines.run.claim import claim
from pipelines.run.texts import override

STEPS = 2
SAMPLES = 2
SHORT = (
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    f"checkpoint.every_n_steps={STEPS}",
    f"evaluation.every_n_steps={STEPS}",
    f"evaluation.mini={SAMPLES}",
    "evaluation.full_at=[]",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "evaluation.fail_fast=true",
    "tracking.wandb=disabled",
)
"""Overrides that make a run short. An error in the evaluation is to be seen, so it ends the trial."""


def smoke_folder(folder: Path) -> Path:
    """The run folder of the trial of the run in ``folder``: hidden beside it, and so on the same disk.

    All ranks find the same one, because each is started with the same words.
    """
    return folder.parent / f".{folder.name}.smoke"


def smoke_words(folder: Path, *, validates: bool) -> list[str]:
    """Overrides for the trial of the run in ``folder``; ``validates`` if it has an evaluation.val."""
    val = ["evaluation.val.every_n_steps=0", f"evaluation.val.limit={SAMPLES}"] if validates else []
    return [*SHORT, *val, override("run.dir", smoke_folder(folder))]


@contextmanager
def removed(folder: Path, *, leads: bool, warn: Callable[[str], None]) -> Iterator[None]:
    """Remove ``folder``, the run folder of a trial, before this block and after it. Only the rank that ``leads`` does.

    Raises:
        HeldError: another trial of the same run is under way.
    """
    if not leads:
        yield
        return
    if folder.exists():  # left by a trial that was killed
        with claim(folder):
            rmtree(folder)
    try:
        yield
    finally:
        rmtree(folder, ignore_errors=True)
        if folder.exists():
            warn(f"{folder} could not be removed; remove it yourself")
