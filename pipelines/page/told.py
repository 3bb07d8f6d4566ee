"""Brings errors and warnings to the user of the page."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from modules.redaction import redact
from pipelines.run.ending import USER_ERRORS

SPEAKERS = ("callbacks", "datamodules", "modules", "pipelines")


class _Warnings(logging.Handler):
    """Shows what is logged as a message on the page."""

    def emit(self, record: logging.LogRecord) -> None:
        gr.Warning(redact(record.getMessage()))


@contextmanager
def told() -> Iterator[None]:
    """Show on the page what is warned of here, and errors that the user can fix. The server goes on after any error."""
    handler = _Warnings(logging.WARNING)
    for name in SPEAKERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    except USER_ERRORS as error:
        raise gr.Error(redact(str(error)), duration=None, print_exception=False) from error
    finally:
        for name in SPEAKERS:
            logging.getLogger(name).removeHandler(handler)
