"""A broken file gives a result or a sentence: never a traceback, never a hang, whatever is broken about it."""

import faulthandler
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.scenes.prepare import PreparedPaths
from pipelines.run.console import sentence_of
from tests.fuzz.readers import Reader, Readers

HANGS_AFTER = 60
"""Seconds; the process then shows its stacks and ends."""
LONGEST = 2000
"""Characters of a sentence."""
FEW, MANY = 20, 2500
"""Broken files for each reader, in every run of the tests and in the long one."""
NAMES = Readers.names()


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path, prepared: PreparedPaths, finished_run: Path) -> Reader:
    return Readers(tmp_path / "files", prepared, finished_run).make(request.param)


def survives(reader: Reader, examples: int, *, always_the_same: bool) -> None:
    """Break the file ``examples`` times, and let the reader read it."""
    good = reader.file.read_bytes()

    @settings(
        max_examples=examples // reader.cost,
        derandomize=always_the_same,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def one(seed: int) -> None:
        broken = reader.breaks(good, Random(seed))
        reader.file.write_bytes(broken)
        watched(reader, broken)

    reader.then()
    reader.read()  # the good file
    one()


def watched(reader: Reader, broken: bytes) -> None:
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    try:
        reader.then()
        reader.read()
    except Exception as error:
        if not 0 < len(sentence_of(error) or "") < LONGEST:
            error.add_note(f"the file: {broken[:500]!r}")
            raise
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("reader", NAMES, indirect=True)
def test_a_broken_file_is_read_or_refused_in_a_sentence(reader: Reader) -> None:
    survives(reader, FEW, always_the_same=True)


@pytest.mark.slow
@pytest.mark.parametrize("reader", NAMES, indirect=True)
def test_many_broken_files_are_read_or_refused_in_a_sentence(reader: Reader) -> None:
    survives(reader, MANY, always_the_same=False)
