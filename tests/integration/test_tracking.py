"""What Weights & Biases gets of a whole run, read back from the files of an offline run."""

import json
import subprocess
import sys
from pathlib import Path

from .running import ENVIRONMENT, ROOT, UNIFIED, command


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
    tool = Path(sys.executable).with_name("wandb")
    read = subprocess.run([tool, "leet", "inspect", "--json", segment], capture_output=True, text=True, check=True)
    entries = [json.loads(line) for line in read.stdout.splitlines()]
    history = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]

    def steps(key: str) -> list[int]:
        return [row["step"] for row in history if any(name == key or name.startswith(f"{key}.") for name in row)]

    for key in ("train/loss", "train/loss_mmu", "train/loss_t2i", "train/lr", "train/tokens_per_s"):
        assert steps(key) == [1, 2, 3, 4], key
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
