"""What becomes of the other ranks when one fails."""

import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from pipelines.fit import end_children


def test_ranks_that_wait_for_a_failed_one_are_ended_and_the_others_left_to_end_themselves() -> None:
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    failing = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2); raise SystemExit(2)"])
    launcher = object.__new__(_SubprocessScriptLauncher)
    launcher.procs = [failing, waiting]
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    end_children(cast(pl.Trainer, trainer), grace=3)
    assert (failing.returncode, waiting.wait(10)) == (2, -9)


def test_without_children_there_is_nothing_to_end() -> None:
    end_children(cast(pl.Trainer, SimpleNamespace(strategy=SimpleNamespace(launcher=None))), grace=5)
