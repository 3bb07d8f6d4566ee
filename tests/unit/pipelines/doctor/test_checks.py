"""A verdict on each thing that a run depends on."""

import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.scenes.prepare import PreparedPaths
from pipelines.doctor import checks
from pipelines.doctor.checks import Verdict, examine
from pipelines.run.config import RunConfig, load
from pipelines.run.memory import planned_model
from pipelines.run.ranks import Ranks

ROOT = Path(__file__).parents[4]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(run_folder: Path, tmp_path: Path) -> RunConfig:
    config = load(run_folder / "config.yaml")
    return replace(config, run=replace(config.run, dir=str(tmp_path / "runs" / "new")))


def verdicts(config: RunConfig | None) -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in examine(config, Ranks())}


def test_what_is_in_order_is_ok(config: RunConfig) -> None:
    found = verdicts(config)
    assert {name for name, verdict in found.items() if verdict.state != "ok"} == set()
    assert {"packages", "tokenizer", "VQ tokenizer", "data, mmu", "data, t2i", "disk", "clock", "W&B"} <= found.keys()
    assert "of them read" in found["data, t2i"].text
    assert not Path(config.run.dir).exists()
    assert verdicts(None).keys() < found.keys()


def test_a_package_of_another_version_is_named(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    own = checks.version
    monkeypatch.setattr(checks, "version", lambda name: "2.6.3" if name == "lightning" else own(name))
    found = [verdict for verdict in examine(None, Ranks()) if verdict.state == "failed"]
    assert found == [Verdict("packages", "failed", "lightning 2.6.3 is installed, lightning==2.6.6 is needed")]


def test_missing_files_are_named_one_by_one(config: RunConfig, run_folder: Path, tmp_path: Path) -> None:
    model = replace(config.model, tokenizer="none.json", vq="none.safetensors")
    broken = replace(
        config, model=model, pretrained=str(tmp_path / "none"), init_from=(str(tmp_path / "gone"), str(run_folder))
    )
    found = {(v.name, v.state): v.text for v in examine(broken, Ranks()) if v.state != "ok"}
    assert "none.json does not exist" in found["tokenizer", "failed"]
    assert "none.safetensors does not exist" in found["VQ tokenizer", "failed"]
    assert "none does not exist" in found["pretrained", "failed"]
    assert found["init_from", "failed"] == f"{tmp_path / 'gone'} does not exist"
    assert found["init_from", "warning"] == f"{run_folder} is not complete yet"


def test_damaged_data_is_found(config: RunConfig, prepared: PreparedPaths, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(prepared.mmu_instruct.parent, tmp_path / "mmu"))
    broken = replace(config, data=replace(config.data, mmu=str(copy / "manifest.json")))
    assert verdicts(broken)["data, mmu"].state == "ok"
    [shard] = sorted(copy.glob("*.tar"))[:1]
    shard.write_bytes(shard.read_bytes()[:-512])
    found = verdicts(broken)
    assert found["data"].state == "failed"
    assert shard.name in found["data"].text


def test_a_disk_too_small_for_its_checkpoints_fails(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    assert verdicts(config)["disk"].state == "failed"
    assert "its checkpoints will take up to" in verdicts(config)["disk"].text


def test_checkpoints_that_are_there_are_not_asked_for_again(
    config: RunConfig, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that was preempted would not be let back onto the disk that it filled."""
    count = sum(p.numel() for p in planned_model(config).parameters())
    whole = 12 * count  # the unified stage trains everything
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(0, 0, 2 * whole))
    assert config.checkpoint.keep_last == 2
    assert verdicts(config)["disk"].state == "failed"
    state = Path(config.run.dir) / "checkpoints" / "step-000000005" / "state.ckpt"
    state.parent.mkdir(parents=True)
    state.write_bytes(bytes(2 * whole))
    assert verdicts(config)["disk"].state == "ok"
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(0, 0, whole // 2))
    assert verdicts(config)["disk"].state == "failed"  # the next is written before one is deleted


def test_only_what_a_stage_trains_has_moments_to_keep(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = replace(config, stage=replace(config.stage, freeze=("backbone.*",)))
    model = planned_model(frozen)
    kept = sum(p.numel() for name, p in model.named_parameters() if name.startswith("backbone."))
    one = 12 * sum(p.numel() for p in model.parameters()) - 8 * kept
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(0, 0, 3 * one + 1))
    assert (verdicts(config)["disk"].state, verdicts(frozen)["disk"].state) == ("failed", "ok")


def test_what_a_run_started_from_is_not_asked_of_one_that_goes_on(config: RunConfig, tmp_path: Path) -> None:
    gone = replace(config, pretrained=str(tmp_path / "none"), init_from=(str(tmp_path / "gone"),))
    assert {"pretrained", "init_from"} < verdicts(gone).keys()
    (Path(config.run.dir) / "checkpoints" / "step-000000005").mkdir(parents=True)
    assert not {"pretrained", "init_from"} & verdicts(gone).keys()


def test_a_folder_without_a_checkpoint_is_nothing_to_start_from(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = verdicts(replace(config, init_from=(str(tmp_path / "empty"),)))["init_from"]
    assert (found.state, found.text) == ("failed", f"{tmp_path / 'empty'} holds no checkpoint; train that run first")


def test_gpus_that_are_not_there_fail_and_the_rest_is_still_told(config: RunConfig) -> None:
    found = verdicts(replace(config, hardware=replace(config.hardware, accelerator="gpu", devices=64)))
    assert found["gpus"].state == "failed"
    assert "this machine has" in found["gpus"].text
    assert found["tokenizer"].state == "ok"


@pytest.mark.parametrize(("word", "code"), [("seed=1", 0), ("pretrained=nowhere", 1)])
def test_the_verb_ends_with_one_exit_code(word: str, code: int, tmp_path: Path) -> None:
    words = ["check", "configs/smoke_unified.yaml", f"run.dir={tmp_path / 'run'}", word]
    done = subprocess.run([sys.executable, "-m", "pipelines.doctor", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "ok       packages" in done.stdout
    assert (f"failed   pretrained     {ROOT / 'nowhere'} does not exist" in done.stdout) == bool(code)


def test_processes_try_the_network_between_them() -> None:
    words = ["--standalone", "--nproc-per-node", "2", "-m", "pipelines.doctor", "check"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "all-reduce" in line]
    assert len(lines) == 1
    assert "2 processes, " in lines[0]
