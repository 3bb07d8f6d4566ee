"""How the verbs speak, and how they end: what a user can mend is a message, anything else keeps its traceback."""

import errno
import os

import pytest

from pipelines.console import run_verb, warn


def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_message(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_verb(lambda: failing(OSError(number, os.strerror(number), "metrics.jsonl")))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: [Errno {number}] {os.strerror(number)}: 'metrics.jsonl': make room, and start the same command again\n"
    )


def test_another_failure_of_the_system_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        run_verb(lambda: failing(OSError(errno.EIO, os.strerror(errno.EIO))))


@pytest.mark.parametrize(("rank", "said"), [(None, 1), ("0", 1), ("1", 0)])
def test_one_process_of_a_node_warns(
    rank: str | None, said: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    warn("the disk is nearly full")
    assert capsys.readouterr().err.count("WARNING: the disk is nearly full\n") == said
