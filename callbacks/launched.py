"""The ranks that Lightning starts from rank 0's process, when neither srun nor torchrun starts them."""

import subprocess
import time

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher


class LaunchedRanks(pl.Callback):
    """Ends these ranks when rank 0 fails; they would wait for it until a timeout. Must be the first callback."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Take the processes away from Lightning's observer. It would kill this process because of their exit codes,
        before this process can report its error."""
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            self._processes = list(launcher.procs)
            launcher.procs.clear()  # the observer watches this same list

    def end(self, grace: float) -> list[int]:
        """Return their exit codes; kill those still running after ``grace`` seconds.

        The grace lets a rank that fails too, or failed first, report why.
        """
        deadline = time.monotonic() + grace
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self._processes]
