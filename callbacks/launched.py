"""The ranks that Lightning starts from rank 0's process, when neither srun nor torchrun starts them."""

import subprocess
import threading
import time

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from modules import signals

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0
"""How long rank 0 may take to notice by itself that another rank has ended, for example by a lost connection."""


class LaunchedRanks(pl.Callback):
    """Starts and watches these ranks, and ends them when rank 0 fails; they would wait for it until a timeout. Must be
    the first callback."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()

    def attach(self, trainer: pl.Trainer) -> None:
        """Take the place of Lightning's observer, which kills rank 0 for the exit code of another rank, even if that
        only says that it was told to stop. Call this before training."""
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, _SubprocessScriptLauncher):
            return
        start = launcher._call_children_scripts

        def start_held() -> None:
            try:
                with signals.held():
                    start()
            finally:
                self._take(launcher)
                signals.end_with_us(self._processes)
                threading.Thread(target=self._watch, name="ranks", daemon=True).start()

        launcher._call_children_scripts = start_held  # type: ignore[method-assign]

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """From here on, the exit codes of other ranks are for `end`: this process reports its own error."""
        self._over.set()
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            self._take(launcher)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Stop watching: this rank is done."""
        self._over.set()

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

    def _take(self, launcher: _SubprocessScriptLauncher) -> None:
        """Take the processes away from Lightning's observer, which watches the same list."""
        self._processes += launcher.procs
        launcher.procs.clear()

    def _watch(self) -> None:
        """End this process, too, if another rank fails and nothing here notices."""
        while not self._over.wait(_POLL_SECONDS):
            ended = {rank: code for rank, each in enumerate(self._processes, start=1) if (code := each.poll())}
            if ended and not self._over.wait(_PATIENCE_SECONDS):
                rank, code = next(iter(ended.items()))
                code = code if code > 0 else 128 - code  # killed by a signal, as shells count it
                signals.end_now(code, f"rank {rank} has ended with code {code}, and rank 0 ends with it")
