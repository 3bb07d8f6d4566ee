"""The data of real trainings: exact on any number of processes, bad samples replaced, counted and limited."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from callbacks.bad_samples_file import read_bad_samples
from datamodules.shards.reader import ShardSet
from modules.checkpoints import find_checkpoint
from pipelines.run.config import load
from tests.unit.datamodules.sources.conftest import broken, usable
from tests.unit.datamodules.writing import write_shards

from .running import ENVIRONMENT, NO_EVALUATION, ROOT, UNIFIED, Train, command, keys_of_steps, kill_after, lines, losses

ELASTIC = ["trainer.max_steps=5", "model.adapters.dropout=0.0", "data.global_batch={mmu: 12, t2i: 192}"]


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(UNIFIED, folder, *ELASTIC, "hardware.devices=2")
    return folder


@pytest.fixture(scope="module")
def killed(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that accumulate two micro-steps, both killed one step after they saved."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    words = [*small, *NO_EVALUATION, *ELASTIC, "checkpoint.every_n_steps=2", f"run.dir={folder}", "hardware.devices=2"]
    kill_after(3, command(UNIFIED, *words), folder)
    return folder


@pytest.mark.parametrize("processes", [1, 4])
def test_a_killed_run_goes_on_with_the_next_samples_on_any_number_of_processes(
    whole: Path, killed: Path, train: Train, tmp_path: Path, processes: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    saved = int(find_checkpoint(folder, pytest.fail).name.removeprefix("step-"))
    done = train(UNIFIED, folder, *ELASTIC, f"hardware.devices={processes}")
    assert f"resuming from {folder / 'checkpoints'}" in done.stdout
    again = [row for row in lines(folder / "samples.jsonl") if row["attempt"] == 2]
    assert {row["step"] for row in again} == set(range(saved + 1, 6))
    # accumulation 4 on one process, 1 on four
    assert len(again) == 4 * (5 - saved)
    assert {row["rank"] for row in again} == set(range(processes))
    assert all((len(row["mmu"]), len(row["t2i"])) == (3, 48) for row in again)
    assert keys_of_steps(folder) == keys_of_steps(whole)
    for row, expected in zip(losses(folder), losses(whole), strict=True):
        # float32 sums of the same gradients, in another order
        assert row == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}


def test_sequences_without_padding_have_the_same_losses(whole: Path, train: Train, tmp_path: Path) -> None:
    train(UNIFIED, tmp_path / "run", *ELASTIC, "data.pad=none")
    for row, expected in zip(losses(tmp_path / "run"), losses(whole), strict=True):
        assert row == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}


@pytest.fixture(scope="module")
def damaged(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """MMU manifests in which so many of 60 images do not decode."""
    shards = ShardSet.open(Path(load(ROOT / UNIFIED, small).data.mmu))
    found = {}
    for bad in (4, 24):
        samples = [(shards.key(i), shards.get(i)) for i in range(60)]
        for i, (_, fields) in enumerate(samples):
            if i % 60 < bad:
                fields["jpg"] = fields["jpg"][: len(fields["jpg"]) // 2]
        found[bad] = write_shards(tmp_path_factory.mktemp(f"bad{bad}"), "mmu", samples, per_shard=25, meta={})
    return found


def test_bad_samples_are_replaced_written_down_and_counted_over_processes_and_attempts(
    damaged: dict[int, Path], train: Train, tmp_path: Path
) -> None:
    """An epoch is 20 micro-steps of 3: 10 steps of two processes meet each of the 4 bad images once."""
    common = [f"data.mmu={damaged[4]}", "trainer.max_steps=10", "trainer.log_every_n_steps=5"]
    train(UNIFIED, tmp_path / "two", *common, "hardware.devices=2")
    found = read_bad_samples(tmp_path / "two" / "bad_samples.jsonl", 10)
    names = [ShardSet.open(damaged[4]).key(i) for i in range(4)]
    planned_bad = [row for row in found if row["epoch"] == 0]
    assert sorted({row["key"] for row in planned_bad}) == names
    assert all(row["reason"] for row in found)
    assert {row["rank"] for row in found} <= {0, 1}
    trained = [key for step in keys_of_steps(tmp_path / "two").values() for key in step["mmu"]]
    assert not set(trained) & set(names)
    for row in found:
        if row["substitute"] not in names:
            assert row["substitute"] in keys_of_steps(tmp_path / "two")[row["step"]]["mmu"]
    logged = [
        row["data/bad_samples_mmu"]
        for row in lines(tmp_path / "two" / "metrics.jsonl")
        if "data/bad_samples_mmu" in row
    ]
    assert logged[-1] == len(found)
    # the same steps again, from a checkpoint in the middle and in one process, find the same
    one = [*common, "data.global_batch={mmu: 6, t2i: 96}", "checkpoint.every_n_steps=3"]
    train(UNIFIED, tmp_path / "one", *one)
    assert keys_of_steps(tmp_path / "one") == keys_of_steps(tmp_path / "two")
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "one", resumed)
    (resumed / "COMPLETE").unlink()
    shutil.rmtree(resumed / "checkpoints" / "step-000000010")
    train(UNIFIED, resumed, *one)
    again = [row for row in lines(resumed / "bad_samples.jsonl") if row["attempt"] == 2]
    assert all(row["step"] == 10 for row in again)
    assert [row["key"] for row in read_bad_samples(resumed / "bad_samples.jsonl", 10)] == [
        row["key"] for row in read_bad_samples(tmp_path / "one" / "bad_samples.jsonl", 10)
    ]


def test_too_many_bad_samples_stop_the_run_on_every_process(
    damaged: dict[int, Path], train: Train, tmp_path: Path
) -> None:
    common = [f"data.mmu={damaged[24]}", "trainer.max_steps=10", "checkpoint.every_n_steps=1", "hardware.devices=2"]
    done = train(UNIFIED, tmp_path / "run", *common, code=2)
    found = read_bad_samples(tmp_path / "run" / "bad_samples.jsonl", 10)
    taken = max(row["step"] for row in found) * 6
    assert len(found) > 10
    assert (
        f"error: {len(found)} of {taken} mmu samples so far could not be used, more than data.bad_limit=" in done.stderr
    )
    assert "Traceback" not in done.stderr
    # a higher limit lets it go on from where it stopped
    train(UNIFIED, tmp_path / "run", *common, "data.bad_limit=1.0")


def prepare(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.prepare", *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_official_files_with_odd_pictures_are_built_and_trained_on(
    small: list[str], train: Train, tmp_path: Path
) -> None:
    """Grey, CMYK, turned, palette and 16-bit pictures, wrong names, broken files, unicode, an empty answer."""
    pictures, good = tmp_path / "pictures", sorted(usable())
    pictures.mkdir()
    for name, content in {**usable(), **{name: content for name, (content, _) in broken().items()}}.items():
        (pictures / name).write_bytes(content)
    names = [*good, *sorted(broken()), "missing.jpg"]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    captions = [
        {"id": 5 * i + j, "image_id": i, "caption": f"犬 {j} ünd {i}"} for i in range(len(names)) for j in range(5)
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    talk = [{"from": "human", "value": "Qué <image>?"}, {"from": "gpt", "value": "Grüße 🐕"}]
    more = [{"from": "human", "value": "and?"}, {"from": "gpt", "value": "no"}]
    entries = [{"id": name, "image": name, "conversations": talk + more * (i % 2)} for i, name in enumerate(names)]
    entries += [
        {"id": "empty", "image": good[0], "conversations": [talk[0], {"from": "gpt", "value": " "}]},
        {"id": "text only", "conversations": talk},
        {"id": "too long", "image": good[0], "conversations": [talk[0], {"from": "gpt", "value": "word " * 500}]},
    ]
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    scenes = load(ROOT / UNIFIED, small).scenes
    assert scenes is not None
    vq = f"vq={scenes.folder}/vq.safetensors"
    common = [f"images={pictures}", "processes=2", "per_shard=4"]
    said = prepare("coco", f"captions={tmp_path / 'captions.json'}", vq, f"out={tmp_path / 't2i'}", *common)
    assert f"{len(good)} samples" in said
    said = prepare("llava", f"annotations={tmp_path / 'mix.json'}", f"out={tmp_path / 'mmu'}", *common)
    assert f"{len(good) + 1} samples" in said
    manifests = [f"data.{task}={tmp_path / task / 'manifest.json'}" for task in ("mmu", "t2i")]
    train(UNIFIED, tmp_path / "run", *manifests, "trainer.max_steps=6", "data.num_workers=2")
    for task in ("mmu", "t2i"):
        shards = ShardSet.open(tmp_path / task / "manifest.json")
        trained = {key for step in keys_of_steps(tmp_path / "run").values() for key in step[task]}
        assert trained == {shards.key(i) for i in range(len(shards))}
    assert not (tmp_path / "run" / "bad_samples.jsonl").exists()
