"""Output of the verbs: results on standard output, warnings on standard error, errors with exit code 2."""

import argparse
import errno
import faulthandler
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from os.path import expanduser
from typing import Any, NoReturn

from modules.redaction import redact
from pipelines.run import ending
from pipelines.run.ending import DONE, FAILED, INTERRUPTED, PREEMPTED, UNUSABLE, USER_ERRORS
from pipelines.run.local_rank import local_rank
from pipelines.run.output import show_replacements

STDERR = 2
"""The file descriptor itself, because a replacement of `sys.stderr` may have none."""

_ROOM = "make room, and start the same command again"
_WAYS_OUT = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "name another place, which can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the circle of links",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOTEMPTY: "name another folder, or empty this one",
}
"""What the user can do about an error of the system."""


def say(text: str = "") -> None:
    """Print a line for the user."""
    try:
        print(redact(text), flush=True)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, "standard output") from error


def warn(text: str) -> None:
    """Print a line that must not be missed. Only one process per node prints it."""
    if local_rank():
        return
    print(f"WARNING: {redact(text)}", file=sys.stderr, flush=True)


def split_overrides(parser: argparse.ArgumentParser, rest: Sequence[str]) -> list[str]:
    """The words that ``parser`` did not recognize, if all are key=value; otherwise exit with its usage.

    Raises:
        ValueError: a key of the configuration is written like an option.
    """
    for number, word in enumerate(rest):
        if word.startswith("-"):
            _refuse_key_as_option(word, rest[number + 1 :])
        if word.startswith("-") or "=" not in word:
            parser.error(f"unrecognized argument: {word}")
    return list(rest)


def _refuse_key_as_option(word: str, after: Sequence[str]) -> None:
    """Say how ``--trainer.max_steps=20``, or ``--trainer.max_steps 20``, is written here."""
    from pipelines.run.keys import near_keys

    key, mark, value = word.lstrip("-").partition("=")
    if not mark:
        value = after[0] if after and not after[0].startswith("-") else "..."
    key = key.replace("-", "_")
    near = near_keys(key)
    if near and ("." in key or near[0].rpartition(".")[2] == key):  # else it may be an option, misspelt
        wanted = " or ".join(shlex.quote(f"{name}={value}") for name in near)
        raise ValueError(f"{word} is no option; keys of the configuration are written without dashes: {wanted}")


def run_verb(main: Callable[[], None]) -> NoReturn:
    """Run a verb. Errors that a user can fix end as a message and exit code 2. Secrets are never shown."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacted("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    faulthandler.enable(STDERR)  # a crash in native code shows at least where it was
    show_replacements()
    sys.argv[1:] = [_at_home(word) for word in sys.argv[1:]]
    try:
        _refuse_other_bytes(sys.argv[1:])
        main()
    except SystemExit as stop:
        _leave(stop.code)
    except KeyboardInterrupt as stop:
        _complain("; ".join(["stopped by Ctrl-C", *map(str, stop.args)]))
        _leave(INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # the outermost handler
        if (sentence := sentence_of(error)) is not None:
            _complain(sentence)
            _leave(UNUSABLE)
        # not through sys.excepthook: torch.distributed replaces it with one that delays the output
        _complain("".join(traceback.format_exception(error)).rstrip("\n"))
        _leave(FAILED)
    _leave(DONE)


def sentence_of(error: Exception) -> str | None:
    """What a verb says about an error that the user can fix; None for a fault of the program."""
    if isinstance(error, USER_ERRORS):
        return f"error: {error}"
    way_out = _WAYS_OUT.get(error.errno or 0) if isinstance(error, OSError) else None
    return way_out and f"error: {error}: {way_out}"


def _at_home(word: str) -> str:
    """A path from the command line with ~ expanded, which shells leave in ``--out=~/x``; see `texts` for key=value."""
    option, mark, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{mark}{expanduser(value)}"


def _refuse_other_bytes(words: Sequence[str]) -> None:
    """Refuse words with bytes that Python could not read as text; no file could name what they name.

    Raises:
        ValueError: a word holds such bytes.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"argument {word!a} is not valid Unicode here; if it looks right to you, set LC_ALL=C.UTF-8 or "
                "PYTHONUTF8=1, otherwise rename what it names"
            ) from None


def _leave(code: Any) -> NoReturn:
    """End the process; if a rank failed, immediately.

    In a normal exit NCCL waits for the other ranks, which wait for this one. None would end before a timeout, and
    neither srun nor torchrun would notice the failure.
    """
    distributed = sys.modules.get("torch.distributed")  # not loaded for its own sake
    if distributed is not None and distributed.is_initialized():
        if code not in (DONE, None, PREEMPTED):
            if not isinstance(code, int):
                _complain(str(code))
                code = FAILED
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):  # a full disk, a closed pipe, none
                    stream.flush()
            os._exit(code)
        ending.exit_code = code or DONE
    sys.exit(code)


def _complain(text: str) -> None:
    """Print to standard error why the process ends; if that fails, the process ends all the same."""
    with suppress(OSError, ValueError):
        print(redact(text), file=sys.stderr, flush=True)


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
