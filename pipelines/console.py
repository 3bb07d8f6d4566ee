"""How the verbs speak: results on standard output, warnings on standard error, errors with exit code 2."""

import errno
import logging
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


INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of a verb stopped by SIGINT and by SIGTERM, as shells count them."""


def say(text: str = "") -> None:
    """A line for the user."""
    print(text, flush=True)


def warn(text: str) -> None:
    """A line that must not be overlooked."""
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
