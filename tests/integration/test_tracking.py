"""What Weights & Biases gets of a whole run, read back from an offline run's files, and what it cannot do to one."""

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from callbacks.tracking import read_metrics
from tests.servers import silent_server
from tests.wandb_files import wandb_entries

from .running import (
    ENVIRONMENT,
    LENGTH,
    NO_EVALUATION,
    ROOT,
    STEPS,
    UNIFIED,
    Train,
    command,
    kill_after,
    lines,
)

PLANTED = "planted" + "7Hq2" * 9


def documented(needs: tuple[str, ...]) -> Iterable[str]:
    """The keys of docs/tracking.md whose third column is one of ``needs``, as patterns."""
    for line in (ROOT / "docs" / "tracking.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and cells[-1] in needs:
            for key in re.findall(r"`([^`]+)`", cells[0]):
                yield re.sub(r"<[^>]+>", r"\\w+", key)


def test_an_offline_run_holds_all_keys_steps_tables_and_pictures(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    evaluation = [
        *("evaluation.pope.limit=2", "evaluation.gqa.limit=6", "evaluation.fid.n=4", "evaluation.samples.n=3"),
        *("evaluation.every_n_steps=2", "evaluation.mini=2", "checkpoint.every_n_steps=2"),
    ]
    words = command(UNIFIED, *small, *evaluation, "trainer.max_steps=4", f"run.dir={folder}", "tracking.wandb=offline")
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    [segment] = (folder / "wandb").glob("offline-run-*")
    entries = wandb_entries(segment)
    history = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]

    def steps(key: str) -> list[int]:
        return [row["step"] for row in history if any(name == key or name.startswith(f"{key}.") for name in row)]

    logged = {key for row in lines(folder / "metrics.jsonl") for key in row} - {"step", "time", "attempt"}
    known = list(documented(("every log", "evaluation", "GPU", "when it happens")))
    assert [key for key in logged if not any(re.fullmatch(pattern, key) for pattern in known)] == []
    for pattern in documented(("every log",)):
        keys = [key for key in logged if re.fullmatch(pattern, key)]
        assert keys, pattern
        for key in keys:
            assert steps(key) == [1, 2, 3, 4], key
    last = read_metrics(folder)[-1]
    assert (last["data/samples_mmu"], last["data/samples_t2i"]) == (12, 192)  # four times 3:48
    assert last["train/grad_norm"] ** 2 == pytest.approx(
        sum(value**2 for key, value in last.items() if key.startswith("grad_norm/")), rel=1e-4
    )
    for measure, key in (("pope_style", "f1_macro"), ("gqa_style", "accuracy")):
        assert steps(f"eval/{measure}/{key}") == [4]
        assert steps(f"eval_mini/{measure}/{key}") == [2, 4]
    assert steps("eval/fd_pool/fd_4") == [4]
    assert steps("eval_mini/fd_pool/fd_2") == [2, 4]

    rows = [len(json.loads(path.read_text())["data"]) for path in segment.rglob("*.table.json")]
    assert sorted(set(rows)) == [2, 6]  # of the mini and the full evaluation; POPE has three splits
    assert len(list(segment.rglob("*.png"))) > 0
    kept = {entry["artifact"]["name"].split("-", 1)[1] for entry in entries if entry["type"] == "artifact"}
    assert {f"{name}-step-000000004" for name in ("pope_style", "gqa_style", "fd_pool", "samples")} <= kept
    assert {"checkpoint", "provenance"} <= kept


@pytest.mark.slow
def test_killed_three_times_a_run_reads_back_as_one_history(small: list[str], train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    length = [*LENGTH, "tracking.wandb=offline"]
    words = command(UNIFIED, *small, *NO_EVALUATION, *length, f"run.dir={folder}")
    for step in (2, 6, 11):  # before the first checkpoint, and behind what was logged
        kill_after(step, words, folder)
    tracked = json.loads((folder / "provenance.json").read_text())["wandb_run_id"]
    (folder / "provenance.json").unlink()  # the checkpoint knows
    done = train(UNIFIED, folder, *length)
    assert f"continues as W&B run {tracked}" in done.stderr
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all("train/loss" in row for row in rows)
    assert [row["data/samples_mmu"] for row in rows] == [3 * step for step in range(1, STEPS + 1)]
    attempts = [row["attempt"] for row in rows]
    assert attempts == sorted(attempts)
    assert attempts[-1] == 4
    segments = list((folder / "wandb").glob("offline-run-*"))
    assert len(segments) == 4
    assert {segment.name.rsplit("-", 1)[1] for segment in segments} == {tracked}
    assert json.loads((folder / "provenance.json").read_text())["wandb_run_id"] == tracked


def test_a_silent_server_and_planted_secrets(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    secrets = {"WANDB_API_KEY": PLANTED, "HF_TOKEN": "hf_" + PLANTED, "AWS_SECRET_ACCESS_KEY": "planted/aws/key"}
    tracking = ["tracking.wandb=online", "tracking.patience_seconds=2", "trainer.max_steps=4"]
    words = command(UNIFIED, *small, *NO_EVALUATION, *tracking, f"run.dir={folder}")
    with silent_server() as address:
        environment = {**ENVIRONMENT, **secrets, "WANDB_BASE_URL": address}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("WARNING") == 1
    assert "W&B cannot be reached (" in done.stderr
    assert "pipelines.report sync" in done.stderr
    assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3, 4]
    assert "planted" not in done.stdout + done.stderr
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert b"planted" not in path.read_bytes(), path


def test_a_secret_in_the_configuration_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = command(UNIFIED, f"run.dir={folder}", f"tracking.api_key={PLANTED}")
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "tracking.api_key is named like a secret" in done.stderr
    assert PLANTED not in done.stdout + done.stderr
    assert not folder.exists()
