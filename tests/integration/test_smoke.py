"""``train --smoke``: a little of everything, of which nothing is kept."""

import json
from pathlib import Path

import pytest

from callbacks.tracking import read_metrics
from pipelines import train
from pipelines.run.claim import HeldError, claim
from pipelines.run.smoke import removed, smoke_folder
from tests.verbs import call

from .running import NO_EVALUATION, ROOT, UNIFIED


def test_smoke_trains_saves_and_evaluates_a_little_and_keeps_nothing(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, kept = tmp_path / "runs" / "mine", tmp_path / "kept"
    monkeypatch.setattr("pipelines.run.smoke.rmtree", lambda folder, **_: folder.rename(kept))
    monkeypatch.chdir(ROOT)
    none = [f"evaluation.{key}=null" for key in ("gqa", "samples", "speed")]
    words = [
        *small,
        *none,
        f"run.dir={run}",
        "evaluation.fid.n=4",
        "evaluation.full_at=[1]",
        "checkpoint.best=eval_mini/pope_style/f1_macro",
    ]
    assert call(train, UNIFIED, "--smoke", *words) == 0
    assert "2 samples of each measure (pope, fid) work; nothing is kept" in capsys.readouterr().out
    assert list((tmp_path / "runs").iterdir()) == []
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["step-000000002"]
    assert [row["step"] for row in read_metrics(kept) if "train/loss" in row] == [1, 2]
    [step] = (kept / "records").iterdir()
    found = json.loads((step / "results.json").read_text())
    assert {name: result["protocol"]["n"] for name, result in found.items()} == {
        "pope_style_mini": 6,
        "fd_pool_mini": 2,
    }


def test_smoke_shows_an_error_in_the_evaluation_and_cleans_up(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "mine"
    monkeypatch.chdir(ROOT)
    words = [*small, *NO_EVALUATION[1:], f"run.dir={run}", f"evaluation.pope.folder={tmp_path / 'nowhere'}"]
    assert call(train, UNIFIED, *words, "--smoke") == 2
    assert f"{tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_trial_that_is_under_way_is_left_alone_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    folder = smoke_folder(tmp_path / "mine")
    (folder / "checkpoints").mkdir(parents=True)
    with (
        claim(folder),
        pytest.raises(HeldError, match="another process holds run folder"),
        removed(folder, leads=True, warn=pytest.fail),
    ):
        pytest.fail("it began")
    assert (folder / "checkpoints").is_dir()
    with removed(folder, leads=False, warn=pytest.fail):
        assert (folder / "checkpoints").is_dir()  # only one rank removes it
    with removed(folder, leads=True, warn=pytest.fail):
        assert not folder.exists()
