"""One W&B run out of a run folder, read back by W&B's own tool, and sent by it to a server of our own."""

import fcntl
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.sync import sync_run
from pipelines.run.ending import USER_ERRORS
from tests.wandb_files import wandb_entries, wandb_history

from .reporting import add_results, add_samples, make_run, result, write_json, write_lines


def log(run: Path, *rows: tuple[int, int, dict[str, float | None]]) -> None:
    """Rows of (attempt, step, metrics); a second each."""
    lines = [{"step": s, "time": 1e9 + i, "attempt": a, **metrics} for i, (a, s, metrics) in enumerate(rows)]
    write_lines(run / "metrics.jsonl", lines)


def test_attempts_become_one_history_without_gaps_or_doubles(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    logged = [(1, step, {"a": 1.0}) for step in (1, 2, 3, 4, 5)]
    logged += [(2, step, {"a": 2.0}) for step in (3, 4)]  # requeued behind the last logged step, and killed again
    logged += [(3, step, {"a": 3.0}) for step in (5, 6, 7)]
    log(run, *logged)
    merged = sync_run(run, offline=True)
    found = [(row["step"], row["attempt"], row["a"]) for row in wandb_history(merged)]
    assert found == [(1, 1, 1), (2, 1, 1), (3, 2, 2), (4, 2, 2), (5, 3, 3), (6, 3, 3), (7, 3, 3)]
    assert [row["_step"] for row in wandb_history(merged)] == list(range(7))


def test_what_was_logged_at_one_step_is_one_row_with_the_time_it_was_logged_at(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    log(run, (1, 5, {"a": 1.0}), (1, 5, {"b": 2.0}), (1, 6, {"a": None}))
    one, two = wandb_history(sync_run(run, offline=True))
    assert (one["a"], one["b"], one["_timestamp"]) == (1, 2, 1e9 + 1)
    assert (two["step"], two["_timestamp"]) == (6, 1e9 + 2)
    assert "a" not in two


def test_the_run_has_its_id_name_configuration_and_axis(tmp_path: Path) -> None:
    found = wandb_entries(sync_run(make_run(tmp_path / "run", name="mine"), offline=True))
    [run] = [record["run"] for record in found if record["type"] == "run"]
    assert (run["run_id"], run["display_name"], run["project"]) == ("run1", "mine", "omnimamba")
    assert run["config"]["update"]["optim"] == {"lr": 0.25}
    metrics = [record["metric"] for record in found if record["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric["step_metric"] == "step" for metric in metrics)


def test_pictures_and_answers_are_in_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_samples(run, 6, ["a red circle", "a blue square"])
    add_samples(run, 9, ["a red circle"])
    add_results(run, 6, {"pope": result({"f1_macro": 1.0})})
    row = {"sample_id": "1", "split": "random", "question": "Is it?", "prompt": "p", "raw": "Yes", "gold": "yes"}
    write_lines(run / "records/step-000000006/pope/rank0.jsonl", [row])
    merged = sync_run(run, offline=True)
    kept = [record["artifact"] for record in wandb_entries(merged) if record["type"] == "artifact"]
    assert [one["name"] for one in kept if one["type"] == "eval_predictions"] == ["run1-pope-step-000000006"]
    rows = {row["step"]: row for row in wandb_history(merged)}
    assert sorted(rows) == [1, 2, 3, 4, 5, 6, 9]
    assert (rows[6]["eval/samples.count"], rows[9]["eval/samples.count"]) == (2, 1)
    assert rows[6]["eval/samples.captions"] == ["a red circle", "a blue square"]
    assert rows[6]["train/loss"] == pytest.approx(1 / 6)
    table = json.loads((merged / "files" / rows[6]["eval/pope/answers.path"]).read_text())
    assert dict(zip(table["columns"], table["data"][0], strict=True))["raw"] == "Yes"


def test_answers_of_a_small_evaluation_are_logged_under_its_keys(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    log(run, (1, 6, {"eval_mini/pope/f1_macro": 1.0}), (1, 6, {"eval/gqa_mini/accuracy": 1.0}))
    add_results(run, 6, {name: result({"f1_macro": 1.0}) for name in ("pope_mini", "gqa_mini")})
    row = {"sample_id": "1", "question": "Is it?", "raw": "Yes", "gold": "yes"}
    for name in ("pope_mini", "gqa_mini"):
        write_lines(run / f"records/step-000000006/{name}/rank0.jsonl", [row])
    [found] = [row for row in wandb_history(sync_run(run, offline=True)) if row["step"] == 6]
    tables = {key for key in found if "/answers" in key}
    assert {key.rpartition("/")[0] for key in tables} == {"eval_mini/pope", "eval/gqa_mini"}


def test_it_is_made_anew_every_time(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    sync_run(run, offline=True)
    merged = sync_run(run, offline=True)
    assert list(merged.parent.glob("offline-run-*")) == [merged]
    assert len(wandb_history(merged)) == 6


def test_a_run_that_is_training_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another process holds run folder .*; wait for it"):
            sync_run(run, offline=True)
    assert not (run / "wandb_merged").exists()


def test_a_damaged_line_is_refused_because_it_would_be_a_gap(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7}\n{"step": 8')
    with pytest.raises(ValueError, match=r"line 7 of .*metrics.jsonl is not a row of metrics .*; fix or delete"):
        sync_run(run, offline=True)


def test_a_run_without_an_id_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_json(run / "provenance.json", {"attempts": []})
    with pytest.raises(ValueError, match=r"config.yaml or provenance.json in .* is missing or damaged, so its W&B run"):
        sync_run(run, offline=True)


def test_another_place_may_be_named_when_the_runs_own_is_one_that_wandb_refuses(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("name: mine\ntracking: {project: team/omni, tags: [old]}\n")
    with pytest.raises(USER_ERRORS, match=r"W&B would not take .*: tracking.project='team/omni' holds /.*--project"):
        sync_run(run, offline=True)
    with pytest.raises(USER_ERRORS, match=r"--entity='a:b' holds :"):
        sync_run(run, offline=True, project="omni", entity="a:b")
    assert not (run / "wandb_merged").exists()
    found = wandb_entries(sync_run(run, offline=True, project="omni", entity="team"))
    [record] = [record["run"] for record in found if record["type"] == "run"]
    assert (record["project"], record["entity"], record["tags"]) == ("omni", "team", ["old"])


def test_a_run_with_a_long_name_is_synced_under_its_beginning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name="n" * 200)
    found = wandb_entries(sync_run(run, offline=True))
    [record] = [record["run"] for record in found if record["type"] == "run"]
    assert record["display_name"] == "n" * 127 + "…"


@pytest.mark.parametrize(
    "line", ["tracking: 5", "tracking: {project: 5}", "tracking: {tags: old}", f"tracking: {{tags: [{'t' * 65}]}}"]
)
def test_what_a_configuration_says_about_wandb_is_checked(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(f"name: mine\n{line}\n")
    with pytest.raises(USER_ERRORS, match=r"config\.yaml"):
        sync_run(run, offline=True)


def test_what_wandb_itself_refuses_is_a_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_json(run / "provenance.json", {"wandb_run_id": "a/b", "attempts": []})
    with pytest.raises(USER_ERRORS, match=r"W&B could not build its run in .*wandb_merged: Run ID cannot contain"):
        sync_run(run, offline=True)


def test_without_a_key_the_upload_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        USER_ERRORS, match=r"(?s)Nothing is lost: log in with `wandb login`, or upload .*: wandb sync .*/wandb_merged/"
    ):
        sync_run(make_run(tmp_path / "run"))
    assert "API key" in capfd.readouterr().err


class Server(ThreadingHTTPServer):
    """As much of W&B as an upload asks for, on this machine; keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        """Address to line number to row: a line that is sent again takes the place of what was there."""
        self.files: set[str] = set()
        self.complete = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            asked = json.loads(body).get("variables", {})
            files = [{"name": name, "uploadUrl": f"{self.server.address}/{name}"} for name in asked.get("files", [])]
            project = {"id": "p", "name": "omnimamba", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": "run1", "config": "{}", "historyLineCount": 0, "project": project}
            upserted = {"bucket": bucket, "inserted": True}
            created = {"runID": "b", "uploadHeaders": [], "files": files}
            self._answer({"data": {"upsertBucket": upserted, "createRunFiles": created}})
            return
        if self.path.endswith("file_stream"):
            sent = json.loads(body)
            self.server.complete |= sent.get("complete", False)
            rows = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            kept = self.server.history.setdefault(self.path, {})
            kept.update({rows["offset"] + i: json.loads(line) for i, line in enumerate(rows["content"])})
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self.server.files.add(self.path.removeprefix("/"))
        self._answer({})

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield server
        server.shutdown()


def test_the_upload_sends_the_whole_history_under_the_runs_id(tmp_path: Path, server: Server) -> None:
    run = make_run(tmp_path / "run")
    add_samples(run, 3, ["a red circle"])
    log(run, (1, 1, {"a": 1.0}), (1, 2, {"a": 1.0}), (1, 3, {"a": 1.0}), (2, 2, {"a": 2.0}), (2, 3, {"a": 2.0}))
    sync_run(run)
    log(run, (1, 1, {"a": 1.0}), (2, 2, {"a": 2.0}), (2, 3, {"a": 2.0}), (3, 4, {"a": 3.0}))
    sync_run(run)  # the run went on: what is there is replaced, not appended to
    [(address, rows)] = server.history.items()
    assert address == "/files/me/omnimamba/run1/file_stream"
    assert [(rows[i]["step"], rows[i]["attempt"], rows[i]["a"]) for i in sorted(rows)] == [
        (1, 1, 1), (2, 2, 2), (3, 2, 2), (4, 3, 3),
    ]  # fmt: skip
    assert sorted(rows) == [0, 1, 2, 3]
    assert server.complete
    assert any(name.startswith("media/images/eval/samples_") for name in server.files)
