"""How the verbs speak: results on standard output, warnings on standard error, errors with exit code 2."""

import atexit
import errno
import faulthandler
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from modules.redaction import redact

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
"""What a user can mend: shown as a message. Anything else is a fault of the program and keeps its traceback."""


INTERRUPTED, PREEMPTED = 130, 75
"""Exit codes of a verb stopped by Ctrl-C, as shells count it, and of a training that was told to stop, saved its step
and will go on from there (EX_TEMPFAIL of sysexits.h)."""


STDERR = 2
"""The file itself: what stands in for `sys.stderr` has none."""


def say(text: str = "") -> None:
    """A line for the user."""
    print(redact(text), flush=True)


def warn(text: str) -> None:
    """A line that must not be overlooked; of the processes that Lightning or torchrun start on a node, one says it."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    print(f"WARNING: {redact(text)}", file=sys.stderr, flush=True)


def run_verb(main: Callable[[], None]) -> NoReturn:
    """Run a verb; what a user can mend ends as a message and exit code 2. Secrets are shown nowhere."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacted("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    faulthandler.enable(STDERR)  # a crash in native code shows at least where it was
    try:
        main()
    except SystemExit as stop:
        _leave(stop.code)
    except USER_ERRORS as error:
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        _leave(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        _leave(INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # the last one to hear of it
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: {error}: make room, and start the same command again", file=sys.stderr, flush=True)
            _leave(2)
        # not by sys.excepthook, which torch.distributed makes hold back what is printed
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="", flush=True)
        _leave(1)
    _leave(0)


def _leave(code: str | int | None) -> NoReturn:
    """End the process; one that has a process group, without dismantling the interpreter.

    gloo's threads let go of tensors when it suits them. One that does so while the interpreter is dismantled aborts the
    process (-6), though its run is complete. A rank that fails leaves at once: in an orderly end NCCL waits for the
    other ranks, who wait for this one: none would end before a timeout, and neither srun nor torchrun would see that
    one has failed.
    """
    distributed = sys.modules.get("torch.distributed")  # not loaded for its own sake
    if distributed is None or not distributed.is_initialized():
        sys.exit(code)
    if isinstance(code, str):
        print(redact(code), file=sys.stderr)
        code = 1
    if code in (0, None, PREEMPTED):
        distributed.destroy_process_group()
        # what Python does before it dismantles itself
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a closed pipe
            stream.flush()
    os._exit(code or 0)


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
