"""How the verbs speak: results on standard output, warnings on standard error, errors with exit code 2."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
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
    sys.excepthook = _show_fault
    try:
        main()
    except SystemExit as stop:
        _leave(stop.code)
    except USER_ERRORS as error:
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        _leave(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}: make room, and start the same command again", file=sys.stderr, flush=True)
        _leave(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        _leave(INTERRUPTED)
    _leave(0)


def _leave(code: str | int | None) -> NoReturn:
    """End the process as Python would, by a number or a message; see `_leave_others`."""
    if isinstance(code, int) and code not in (0, PREEMPTED):
        _leave_others(code)
    sys.exit(code)


def _leave_others(code: int) -> None:
    """Let a rank that fails end at once.

    In an orderly end NCCL waits for the other ranks, who wait for this one: none would end before a timeout, and
    neither srun nor torchrun would see that one has failed.
    """
    distributed = sys.modules.get("torch.distributed")  # not loaded for its own sake
    if distributed is not None and distributed.is_initialized():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _show_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="", flush=True)
    _leave_others(1)
