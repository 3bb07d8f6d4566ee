"""The ranks that Lightning starts from rank 0's process, where neither srun nor torchrun does."""

import subprocess
import time

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher


class LaunchedRanks(pl.Callback):
    """Ends them where rank 0 fails: they would wait for it until a timeout. To be the first of all callbacks."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Take them from Lightning's observer, which would kill this process for their exit codes before it spoke."""
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            self._processes = list(launcher.procs)
            launcher.procs.clear()  # the observer looks at this very list

    def end(self, grace: float) -> list[int]:
        """Their exit codes; those that are still there after ``grace`` seconds are killed.

        Meanwhile one that fails as well, or did first, says why.
        """
        deadline = time.monotonic() + grace
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self._processes]
