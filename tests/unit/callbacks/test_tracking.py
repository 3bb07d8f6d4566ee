"""The local file holds everything; Weights & Biases mirrors it and can fail without anybody noticing in training."""

import errno
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import wandb
from PIL import Image

from callbacks import wandb_run
from callbacks.tracking import MetricsError, Tracker, TrackingConfig, read_metrics
from callbacks.wandb_names import MODES
from modules.run_files import METRICS, METRICS_REST
from tests.disks import mounted
from tests.servers import silent_server
from tests.wandb_files import wandb_entries, wandb_history

MakeTracker = Callable[..., Tracker]
Mode = Literal["auto", "online", "offline", "disabled"]


KEY = "planted" + "7Hq2" * 9


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Iterator[MakeTracker]:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def tracker(mode: Mode = "disabled", write: bool = True, attempt: int = 1, patience: float = 30.0) -> Tracker:
        config = TrackingConfig(wandb=mode, tags=("a",), patience_seconds=patience)
        about: dict[str, Any] = {"name": "tiny", "run_id": "abcdef", "settings": {"optim": {"lr": 0.5}}}
        return Tracker(tmp_path, config, **about, attempt=attempt, write=write, report=said.append)

    yield tracker
    for thread in threading.enumerate():
        if thread.name == "wandb":
            thread.join(20)  # or it would go on in the next test, with W&B as it really is
    wandb.teardown()  # a run's id may be used again in this process


@pytest.fixture
def said() -> list[str]:
    """What the user is told."""
    return []


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


@pytest.mark.parametrize(
    ("ended", "entries"),
    [
        ({}, [("exit", {"exit_code": 0})]),
        ({"exit_code": 1}, [("exit", {"exit_code": 1})]),
        ({"exit_code": 75, "preempted": True}, [("preempting", {}), ("exit", {"exit_code": 75})]),
    ],
)
def test_w_and_b_learns_how_a_run_ended(
    make: MakeTracker, tmp_path: Path, ended: dict[str, Any], entries: list[tuple[str, Any]]
) -> None:
    make("offline").close(**ended)
    [folder] = (tmp_path / "wandb").glob("offline-run-*-abcdef")
    found = [(entry["type"], entry[entry["type"]]) for entry in wandb_entries(folder)]
    for kind, what in found:
        if kind == "exit":
            what.pop("runtime", None)  # whole seconds, there only if it took one
    assert [(kind, what) for kind, what in found if kind in ("preempting", "exit")] == entries


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


def test_only_one_rank_writes(make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))
    log_everything(make("offline", write=False))
    assert list(tmp_path.iterdir()) == []


def test_disabled_starts_no_tracking_run(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))
    log_everything(make("disabled"))
    assert said == [f"W&B is disabled; metrics are in {tmp_path}"]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_wandb_gets_the_beginning_of_a_long_name(make: MakeTracker, tmp_path: Path) -> None:
    about: dict[str, Any] = {"name": "n" * 150, "run_id": "abcdef", "settings": {}, "attempt": 1, "write": True}
    Tracker(tmp_path, TrackingConfig(wandb="offline"), **about).close()
    [folder] = (tmp_path / "wandb").glob("offline-run-*-abcdef")
    [run] = [entry["run"] for entry in wandb_entries(folder) if entry["type"] == "run"]
    assert run["display_name"] == "n" * 127 + "…"


def test_an_offline_run_can_be_read_back(make: MakeTracker, tmp_path: Path) -> None:
    tracker = make("offline")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "rank0.jsonl").write_text("{}\n")
    tracker.log_files("pope-step-000000020", "eval_predictions", tmp_path / "records")
    log_everything(tracker)
    [folder] = (tmp_path / "wandb").glob("offline-run-*-abcdef")
    entries = wandb_entries(folder)
    [run] = [entry["run"] for entry in entries if entry["type"] == "run"]
    assert (run["display_name"], run["project"], run["run_id"]) == ("tiny", "omnimamba", "abcdef")
    assert run["config"]["update"]["optim"] == {"lr": 0.5}
    items = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    losses = [(row["step"], row["attempt"], row["train/loss"]) for row in items if "train/loss" in row]
    assert losses == [(1, 1, 2.5), (2, 1, 1.5)]
    assert not any("eval/f1" in row for row in items)  # None has no place on a chart
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
    assert "W&B cannot be started (W&B cannot be reached (no route to host); no route to host)" in warning
    assert f"All metrics are in {tmp_path}" in warning


def test_a_tracking_service_that_fails_later_is_reported_once_and_left(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = SimpleNamespace(log=broken, finish=lambda: None, define_metric=lambda *_, **__: None, url="")
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
    run = SimpleNamespace(log=logged.append, finish=broken, define_metric=lambda *_, **__: None, url="")
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    with caplog.at_level(logging.WARNING):
        log_everything(make("online"))
    assert "W&B could not end its run (no route to host)" in caplog.text
    assert logged[0] == {"train/loss": 2.5, "step": 1, "attempt": 1}


def test_pictures_that_cannot_be_logged_stop_nothing(
    make: MakeTracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(log=logged.append, finish=lambda: None, define_metric=lambda *_, **__: None, url="")
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    tracker = make("online")
    with caplog.at_level(logging.WARNING):
        tracker.log_images(1, "key", [Image.new("RGB", (4, 4))], [])  # a caption is missing
        tracker.log(1, {"x": 2.0})
        tracker.close()
    assert caplog.text.count("W&B failed") == 1
    assert logged == [{"x": 2.0, "step": 1, "attempt": 1}]


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("secret-key", "online")])
def test_auto_is_online_only_with_a_key(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no .netrc there
    monkeypatch.delenv("NETRC", raising=False)
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: given.append(settings) or broken())
    make("auto").close()
    first = given[0]
    assert (first["mode"], first["id"], first["tags"]) == (mode, "abcdef", ["a"])
    assert first["resume"] == ("allow" if mode == "online" else None)
    assert [each["mode"] for each in given[1:]] == (["offline"] if mode == "online" else [])


def test_a_key_in_netrc_counts(make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: given.append(settings) or broken())
    make("auto").close()
    assert given[0]["mode"] == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.elsewhere.org")  # a key of another server
    make("auto").close()
    assert given[-1]["mode"] == "offline"


def test_what_is_not_finite_is_null_in_the_file(make: MakeTracker, tmp_path: Path) -> None:
    tracker = make()
    tracker.log(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    tracker.close()
    [row] = rows(tmp_path)
    assert (row["a"], row["b"], row["c"]) == (None, None, 1.0)
    assert "NaN" not in (tmp_path / METRICS).read_text()


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What we told; W&B's own messages go to its own file, but to caplog too."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("callbacks")]


def test_a_server_that_never_answers_holds_nothing_up(
    make: MakeTracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    said: list[str],
) -> None:
    waiting = threading.Event()
    init = wandb.init

    def begin(**settings: Any) -> Any:
        if settings["mode"] == "online":
            waiting.set()
        return init(**settings)

    monkeypatch.setattr(wandb, "init", begin)
    with silent_server() as address, caplog.at_level(logging.WARNING, logger="callbacks"):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        tracker = make("online", patience=2.0)
        assert waiting.wait(30)
        for step in range(1, 501):
            tracker.log(step, {"train/loss": 1.0})
        assert ours(caplog) == []  # all logged while W&B still waits for its server
        tracker.close()
    assert len(rows(tmp_path)) == 500
    [warning] = ours(caplog)
    assert "W&B cannot be reached (" in warning
    assert f"kept offline in {tmp_path / 'wandb'}; `python -m pipelines.report sync {tmp_path}`" in warning
    assert said == []
    [segment] = (tmp_path / "wandb").glob("offline-run-*-abcdef")
    items = [entry["history"]["item"] for entry in wandb_entries(segment) if entry["type"] == "history"]
    assert [row["step"] for row in items] == list(range(1, 501))  # what was logged meanwhile is there too


def test_a_start_that_never_ends_is_left_at_the_end(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for_ever = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: for_ever.wait())
    with caplog.at_level(logging.WARNING):
        tracker = make("online", patience=0.05)
        tracker.log(1, {"x": 1.0})
        tracker.close()
    for_ever.set()
    [warning] = caplog.messages
    assert "W&B did not finish within 0.1 s and is abandoned" in warning
    assert [row["x"] for row in rows(tmp_path)] == [1.0]


def test_what_waits_for_a_server_is_limited(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for_ever = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: for_ever.wait())
    monkeypatch.setattr(wandb_run, "QUEUED", 3)
    with caplog.at_level(logging.WARNING):
        tracker = make("online", patience=0.05)
        for step in range(9):
            tracker.log(step, {"x": 1.0})
        tracker.close()
    for_ever.set()
    told = [message for message in caplog.messages if "keep up" in message]  # threads of earlier tests may speak too
    assert len(told) == 1
    assert "W&B does not keep up (3 entries wait for it)" in told[0]
    assert len(rows(tmp_path)) == 9


def test_without_a_key_w_and_b_asks_for_none(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    tracker = make("online")
    tracker.log(1, {"x": 1.0})
    tracker.close()
    [line] = said
    assert line.startswith("no W&B API key (WANDB_API_KEY): W&B data is kept offline in ")
    assert len(list((tmp_path / "wandb").glob("offline-run-*-abcdef"))) == 1


def test_a_full_disk_is_told_once_and_training_goes_on(
    make: MakeTracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / METRICS).symlink_to("/dev/full")
    tracker = make()
    for step in (1, 2, 3):
        tracker.log(step, {"x": 1.0})
    tracker.close()
    [error] = caplog.messages
    assert f"{tmp_path / METRICS} cannot be written ([Errno 28] No space left on device): training goes on" in error


class AlmostFull(io.RawIOBase):
    """A file that takes ``room`` bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room, self.content = room, b""

    def write(self, data: Any) -> int:
        taken = bytes(data)[: self.room]
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(taken)
        self.content += taken
        return len(taken)


def test_rows_that_found_no_room_are_written_when_there_is_some(
    make: MakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, opened = AlmostFull(100), Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *how, **more: disk if path.name == METRICS else opened(path, *how, **more)
    )
    tracker = make()
    for step in (1, 2, 3):
        tracker.log(step, {"x": 1.0})
    assert len(disk.content) == 100  # in the middle of a row
    disk.room = 10_000
    tracker.log(4, {"x": 1.0})
    assert [json.loads(line)["step"] for line in disk.content.splitlines()] == [1, 2, 3, 4]


def test_a_run_is_not_complete_while_rows_have_no_room_and_the_next_attempt_writes_them(
    make: MakeTracker, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", 4096) as disk:
        whole = "".join(f'{{"step": {step}, "attempt": 1, "x": 1}}\n' for step in range(100))
        (disk / METRICS).write_text(whole)
        (tmp_path / METRICS).symlink_to(disk / METRICS)
        tracker = make(attempt=2)
        for step in range(100, 120):
            tracker.log(step, {"x": 1})
        with pytest.raises(MetricsError, match=rf"{METRICS} has no room for \d+ rows, which {METRICS_REST} holds"):
            tracker.require_written()
        tracker.close(2)
        assert [row["step"] for row in read_metrics(tmp_path)] != list(range(120))
        assert (tmp_path / METRICS_REST).is_file()
        subprocess.run(["mount", "-o", "remount,size=64k", str(disk)], check=True)
        tracker = make(attempt=3)
        tracker.require_written()
        tracker.close()
        assert [row["step"] for row in read_metrics(tmp_path)] == list(range(120))
        assert not (tmp_path / METRICS_REST).exists()


LOGGING = """
import sys, time
from pathlib import Path
from callbacks.tracking import Tracker, TrackingConfig
folder = Path(sys.argv[1])
about = {"name": "tiny", "run_id": "abcdef", "settings": {}, "write": True}
tracker = Tracker(folder, TrackingConfig(wandb="offline"), **about, attempt=int(sys.argv[2]), report=lambda text: None)
for step in range(int(sys.argv[3]), int(sys.argv[4]) + 1):
    tracker.log(step, {"train/loss": float(step)})
time.sleep(2)  # more than the second that a kill may cost
print("logged", flush=True)
time.sleep(600)
"""


def test_killed_three_times_the_segments_hold_every_row(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    for attempt, (first, last) in enumerate([(1, 4), (5, 9), (7, 12)], start=1):  # the third from behind
        words = [sys.executable, "-c", LOGGING, str(tmp_path), str(attempt), str(first), str(last)]
        process = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, start_new_session=True, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert [(row["step"], row["attempt"]) for row in read_metrics(tmp_path)] == [
        *((step, 1) for step in range(1, 5)),
        *((step, 2) for step in range(5, 7)),
        *((step, 3) for step in range(7, 13)),
    ]
    segments = sorted((tmp_path / "wandb").glob("offline-run-*-abcdef"))
    items = [wandb_history(segment) for segment in segments]
    assert [[(row["step"], row["attempt"]) for row in rows] for rows in items] == [
        [(step, attempt) for step in range(first, last + 1)]
        for attempt, (first, last) in enumerate([(1, 4), (5, 9), (7, 12)], start=1)
    ]


def test_checkpoints_and_what_they_came_from_are_artifacts(make: MakeTracker, tmp_path: Path) -> None:
    manifest = '{"files": {"state.ckpt": {"sha256": "0"}}}'
    (tmp_path / "provenance.json").write_text("{}")
    tracker = make("offline")
    tracker.use_checkpoint("earlier", manifest)  # that W&B cannot offline is no error
    tracker.log_files("provenance", "provenance", tmp_path / "provenance.json")
    tracker.log_checkpoint("step-000000020", manifest, ["earlier step-000000010 1234"])
    tracker.close()
    [segment] = (tmp_path / "wandb").glob("offline-run-*-abcdef")
    artifacts = [entry["artifact"] for entry in wandb_entries(segment) if entry["type"] == "artifact"]
    assert [(each["type"], each["name"]) for each in artifacts] == [
        ("provenance", "abcdef-provenance"),
        ("checkpoint", "abcdef-checkpoint"),
    ]
    assert json.loads(artifacts[1]["metadata"]) == {
        "checkpoint": "step-000000020",
        "init_from": ["earlier step-000000010 1234"],
    }
    assert sorted(artifacts[1]["aliases"]) == ["latest", "step-000000020"]
    [content] = artifacts[1]["manifest"]["contents"]
    assert content["path"] == "manifest.json"  # its hashes, not its gigabytes


def test_lineage_is_one_artifact_used_and_logged(make: MakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    logged: list[Any] = []
    run = SimpleNamespace(
        id="earlier",
        offline=False,
        url="",
        finish=lambda **_: None,
        define_metric=lambda *_, **__: None,
        use_artifact=used.append,
        log_artifact=lambda artifact, aliases: logged.append(artifact),
    )
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    tracker = make("online")
    tracker.use_checkpoint("earlier", '{"files": {}}')
    tracker.log_checkpoint("step-000000010", '{"files": {}}')
    tracker.close()
    [artifact], [of_the_run_that_wrote_it] = used, logged
    assert (artifact.name, artifact.type) == ("earlier-checkpoint", "checkpoint")
    assert artifact.name == of_the_run_that_wrote_it.name
    assert artifact.digest == of_the_run_that_wrote_it.digest


def test_secrets_reach_no_file(
    make: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    others = {
        "HF_TOKEN": "hf_planted0123456789",
        "AWS_SECRET_ACCESS_KEY": "planted/aws/key",
        "PASSWORD": "planted-word",
    }
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    with silent_server() as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        for mode in ("offline", "online"):
            log_everything(make(mode, patience=1.0))
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) > 6
    for path in found:
        content = path.read_bytes()
        assert [secret for secret in (KEY, *others.values()) if secret.encode() in content] == [], path
    assert "planted" not in str(said)


def test_secrets_in_settings_and_reasons_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    given: list[dict[str, Any]] = []

    def refuse(**settings: Any) -> None:
        given.append(settings)
        raise RuntimeError(f"401 for https://me:planted@host/graphql with {KEY}")

    monkeypatch.setattr(wandb, "init", refuse)
    settings = {"hub": {"token": "planted"}, "data": {"mmu": "https://me:planted@host/x", "num_tokens": 5}}
    about: dict[str, Any] = {"name": "tiny", "run_id": "abcdef", "attempt": 1, "write": True}
    Tracker(tmp_path, TrackingConfig(wandb="online"), **about, settings=settings).close()
    assert given[0]["config"] == {"hub": {"token": "***"}, "data": {"mmu": "https://***@host/x", "num_tokens": 5}}
    assert "401 for https://***@host/graphql with ***" in caplog.text
    assert "planted" not in caplog.text


def test_problems_of_tracking() -> None:
    assert TrackingConfig().problems() == []
    assert TrackingConfig(patience_seconds=0).problems() == ["tracking.patience_seconds=0 must be above 0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"project": "team/omni"},
            "tracking.project='team/omni' holds /; W&B takes none of / \\ # ? % :; a team or user",
        ),
        ({"project": "a:b#c"}, "tracking.project='a:b#c' holds # :;"),
        ({"project": "p" * 129}, "has 129 characters, but W&B takes at most 128; shorten it"),
        ({"project": ""}, "tracking.project='' must be printable text"),
        ({"project": "a\nb"}, "tracking.project='a\\nb' must be printable text"),
        ({"entity": "a/b"}, "tracking.entity='a/b' holds /"),
        ({"entity": " me"}, "tracking.entity=' me' must be printable text without blanks around it"),
        ({"group": "g" * 129}, "tracking.group='ggg"),
        ({"tags": ("fine", "")}, "tracking.tags[1]='' has 0 characters, but W&B takes tags of 1 to 64; shorten it"),
        ({"tags": ("t" * 65,)}, "has 65 characters, but W&B takes tags of 1 to 64"),
    ],
)
def test_names_that_wandb_refuses_are_refused_when_the_configuration_is_read(
    given: dict[str, Any], message: str
) -> None:
    [problem] = TrackingConfig(**given).problems()
    assert message in problem
    assert problem.startswith("tracking.")
    assert TrackingConfig(**given, wandb="disabled").problems() == []


@pytest.mark.parametrize(
    "given",
    [
        {"project": "p" * 128, "entity": "my-team_1", "group": "g" * 128, "tags": ("t" * 64, "a/b: c")},
        {"project": "Modèle d'été (2)"},
    ],
)
def test_names_that_wandb_takes_are_taken_and_no_rule_is_stricter_than_its_own(given: dict[str, Any]) -> None:
    assert TrackingConfig(**given).problems() == []
    wandb.Settings(project=given["project"], run_tags=given.get("tags"), run_group=given.get("group"))


@pytest.mark.parametrize("given", [{"project": "a%b"}, {"project": "p" * 129}, {"tags": ("t" * 65,)}, {"tags": ("",)}])
def test_what_we_refuse_wandb_refuses(given: dict[str, Any]) -> None:
    assert TrackingConfig(**given).problems()
    with pytest.raises((ValueError, wandb.Error)):
        wandb.Settings(project=given.get("project"), run_tags=given.get("tags"))


def test_a_mode_in_the_environment_that_wandb_does_not_know_is_refused_where_it_would_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "Offline")
    [problem] = TrackingConfig().problems()
    assert problem.startswith("WANDB_MODE='Offline' must be one of online, offline")
    assert TrackingConfig(wandb="offline").problems() == []
    for mode in MODES:
        monkeypatch.setenv("WANDB_MODE", mode)
        assert TrackingConfig().problems() == []
        wandb.Settings(mode=mode)
