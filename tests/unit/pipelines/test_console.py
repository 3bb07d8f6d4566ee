"""How the verbs speak."""

import pytest

from pipelines.console import warn


@pytest.mark.parametrize(("rank", "said"), [(None, 1), ("0", 1), ("1", 0)])
def test_one_process_of_a_node_warns(
    rank: str | None, said: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    warn("the disk is nearly full")
    assert capsys.readouterr().err.count("WARNING: the disk is nearly full\n") == said
