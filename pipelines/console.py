"""How the verbs speak: results on standard output, warnings on standard error, errors with exit code 2."""

import logging
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


INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of a verb stopped by SIGINT and by SIGTERM, as shells count them."""


def say(text: str = "") -> None:
    """A line for the user."""
    print(redact(text), flush=True)


def warn(text: str) -> None:
    """A line that must not be overlooked."""
    print(f"WARNING: {redact(text)}", file=sys.stderr, flush=True)


def run_verb(main: Callable[[], None]) -> NoReturn:
    """Run a verb; what a user can mend ends as a message and exit code 2. Secrets are shown nowhere."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacted("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.excepthook = _show_fault
    try:
        main()
    except USER_ERRORS as error:
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    sys.exit(0)


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _show_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="", flush=True)
