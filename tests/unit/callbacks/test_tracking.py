"""The local file holds everything; Weights & Biases mirrors it and can fail without anybody noticing in training."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import wandb
from PIL import Image

from callbacks.tracking import METRICS, Tracker, TrackingConfig, read_metrics

MakeTracker = Callable[..., Tracker]
Mode = Literal["auto", "online", "offline", "disabled"]


@pytest.fixture
def make(tmp_path: Path) -> MakeTracker:
    def tracker(mode: Mode = "disabled", write: bool = True, attempt: int = 1) -> Tracker:
        config = TrackingConfig(wandb=mode, tags=("a",))
        settings = {"optim": {"lr": 0.5}}
        return Tracker(tmp_path, config, name="tiny", run_id="abcdef", attempt=attempt, settings=settings, write=write)

    return tracker


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def log_everything(tracker: Tracker) -> None:
    tracker.log(1, {"train/loss": 2.5, "eval/f1": None})  # type: ignore[dict-item]
    tracker.log_images(1, "eval/samples", [Image.new("RGB", (4, 4), "red")], ["a red square"])
    tracker.log_table(2, "eval/answers", ["question", "image"], [["What?", Image.new("RGB", (4, 4))]])
    tracker.log(2, {"train/loss": 1.5})
    tracker.close()


def test_each_log_is_a_line_that_is_there_at_once(make: MakeTracker, tmp_path: Path) -> None:
    tracker = make()
    tracker.log(1, {"train/loss": 2.5, "eval/f1": None})
    [row] = rows(tmp_path)
    assert row.pop("time") > 1.7e9
    assert row == {"step": 1, "attempt": 1, "train/loss": 2.5, "eval/f1": None}
    tracker.log(2, {"train/loss": 1.5})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    tracker.close()
    tracker.close()


def test_attempts_are_appended(make: MakeTracker, tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        tracker = make(attempt=attempt)
        tracker.log(attempt, {"x": 1})
        tracker.close()
    assert [row["attempt"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_line_that_a_kill_cut_short_is_cut_off(make: MakeTracker, tmp_path: Path) -> None:
    whole = '{"step": 1, "attempt": 1, "x": 1}\n'
    (tmp_path / METRICS).write_text(whole + '{"step": 2, "attem')
    assert read_metrics(tmp_path) == [{"step": 1, "attempt": 1, "x": 1}]
    tracker = make(attempt=2)
    assert (tmp_path / METRICS).read_text() == whole
    tracker.log(2, {"x": 2})
    assert [row["x"] for row in read_metrics(tmp_path)] == [1, 2]
    tracker.close()


def test_a_file_that_holds_nothing_whole_is_emptied(make: MakeTracker, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step"')
    make().close()
    assert (tmp_path / METRICS).read_text() == ""
    assert read_metrics(tmp_path) == []


def test_of_a_step_logged_again_the_higher_attempt_counts(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = [
        {"step": 1, "attempt": 1, "loss": 9.0},
        {"step": 2, "attempt": 1, "loss": 8.0},
        {"step": 2, "attempt": 1, "eval": 0.1},
        {"step": 3, "attempt": 1, "loss": 7.0},
        {"step": 2, "attempt": 2, "loss": 6.0},
        {"step": 4, "attempt": 2, "loss": 5.0},
    ]
    expected = [
        {"step": 1, "attempt": 1, "loss": 9.0},
        {"step": 2, "attempt": 2, "loss": 6.0, "eval": 0.1},
        {"step": 3, "attempt": 1, "loss": 7.0},
        {"step": 4, "attempt": 2, "loss": 5.0},
    ]
    for order in (written, written[::-1]):
        (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in order))
        assert read_metrics(tmp_path) == expected


@pytest.mark.parametrize("line", [b'{"step": 2, "att', b"\0\0\0", b"\xff\xfe", b"[1]", b'{"attempt": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "attempt": 1}\n' + line + b'\n{"step": 3, "attempt": 1}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is damaged; delete that line"):
        read_metrics(tmp_path)


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_only_one_rank_writes(make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))
    log_everything(make("offline", write=False))
    assert list(tmp_path.iterdir()) == []


def test_disabled_starts_no_tracking_run(make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))
    log_everything(make("disabled"))
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_an_offline_run_can_be_read_back(make: MakeTracker, tmp_path: Path) -> None:
    tracker = make("offline")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "rank0.jsonl").write_text("{}\n")
    tracker.log_files("pope-step-000000020", "eval_predictions", tmp_path / "records")
    log_everything(tracker)
    [folder] = (tmp_path / "wandb").glob("offline-run-*-abcdef")
    tool = Path(sys.executable).with_name("wandb")
    done = subprocess.run([tool, "leet", "inspect", "--json", folder], capture_output=True, text=True, check=True)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    [run] = [entry["run"] for entry in entries if entry["type"] == "run"]
    assert (run["display_name"], run["project"], run["run_id"]) == ("tiny", "omnimamba", "abcdef")
    assert run["config"]["update"]["optim"] == {"lr": 0.5}
    history = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    losses = [(row["step"], row["attempt"], row["train/loss"]) for row in history if "train/loss" in row]
    assert losses == [(1, 1, 2.5), (2, 1, 1.5)]
    assert not any("eval/f1" in row for row in history)  # None has no place on a chart
    kept = [(entry["artifact"]["type"], entry["artifact"]["name"]) for entry in entries if entry["type"] == "artifact"]
    assert ("eval_predictions", "abcdef-pope-step-000000020") in kept
    assert len(list(folder.glob("files/media/images/eval/samples_*.png"))) == 1
    assert len(list(folder.glob("files/media/table/eval/answers_*.table.json"))) == 1


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("no route to host")


def test_a_tracking_service_that_cannot_start_stops_nothing(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb, "init", broken)
    with caplog.at_level(logging.WARNING):
        log_everything(make("online"))
    assert [row["train/loss"] for row in rows(tmp_path)] == [2.5, 1.5]
    [warning] = caplog.messages
    assert "W&B cannot be reached (no route to host)" in warning
    assert str(tmp_path / METRICS) in warning


def test_a_tracking_service_that_fails_later_is_reported_once_and_left(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = SimpleNamespace(log=broken, finish=lambda: None, define_metric=lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    with caplog.at_level(logging.WARNING):
        log_everything(make("online"))
    assert [row["train/loss"] for row in rows(tmp_path)] == [2.5, 1.5]
    [warning] = caplog.messages
    assert "W&B failed (no route to host)" in warning


def test_a_tracking_service_that_cannot_end_stops_nothing(
    make: MakeTracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(log=logged.append, finish=broken, define_metric=lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    with caplog.at_level(logging.WARNING):
        log_everything(make("online"))
    assert "W&B could not end its run (no route to host)" in caplog.text
    assert logged[0] == {"train/loss": 2.5, "step": 1, "attempt": 1}


def test_pictures_that_cannot_be_logged_stop_nothing(
    make: MakeTracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = SimpleNamespace(log=lambda _: None, finish=lambda: None, define_metric=lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    tracker = make("online")
    with caplog.at_level(logging.WARNING):
        tracker.log_images(1, "key", [Image.new("RGB", (4, 4))], [])  # a caption is missing
    assert "W&B failed" in caplog.text
    tracker.close()


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("secret", "online")])
def test_auto_is_online_only_with_a_key(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no .netrc there
    monkeypatch.delenv("NETRC", raising=False)
    given: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **settings: given.update(settings) or broken())
    make("auto").close()
    assert (given["mode"], given["id"], given["tags"]) == (mode, "abcdef", ["a"])
    assert "secret" not in str(given["config"])


def test_a_key_in_netrc_counts(make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    given: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **settings: given.update(settings) or broken())
    make("auto").close()
    assert given["mode"] == "online"


def test_what_is_not_finite_is_null_in_the_file(make: MakeTracker, tmp_path: Path) -> None:
    tracker = make()
    tracker.log(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    tracker.close()
    [row] = rows(tmp_path)
    assert (row["a"], row["b"], row["c"]) == (None, None, 1.0)
    assert "NaN" not in (tmp_path / METRICS).read_text()
