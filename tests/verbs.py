"""Calls a verb in this process, as its command line does."""

import sys
from types import ModuleType

import pytest

from pipelines.run.console import run_verb


def call(verb: ModuleType, *words: object) -> int:
    """The exit code of ``python -m <verb> <words>``."""
    before, sys.argv = sys.argv, [verb.__name__, *map(str, words)]
    try:
        with pytest.raises(SystemExit) as end:
            run_verb(verb.main)
    finally:
        sys.argv = before
    return int(end.value.code or 0)
