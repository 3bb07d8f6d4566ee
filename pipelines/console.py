"""How the verbs speak: results on standard output, warnings on standard error, errors with exit code 2."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

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
    print(text, flush=True)


def warn(text: str) -> None:
    """A line that must not be overlooked; of the processes that Lightning or torchrun start on a node, one says it."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    print(f"WARNING: {text}", file=sys.stderr, flush=True)


def run_verb(main: Callable[[], None]) -> NoReturn:
    """Run a verb; what a user can mend ends as a message and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        main()
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}: make room, and start the same command again", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    sys.exit(0)
