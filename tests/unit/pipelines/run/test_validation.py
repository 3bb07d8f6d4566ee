"""What a run may be measured on, and what is refused before it starts."""

import json
import shutil
from pathlib import Path

import pytest

from datamodules.scenes.prepare import PreparedPaths
from pipelines.doctor.checks import Verdict, examine
from pipelines.prepare import __main__ as prepare
from pipelines.run.compose import build_tokenizer, build_vq
from pipelines.run.config import ConfigError, RunConfig, load
from pipelines.run.data import build_validation
from pipelines.run.ranks import Ranks
from tests.verbs import call


@pytest.fixture(scope="module")
def held_out(prepared: PreparedPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T2I shards of other pictures than the run's; its conversations are of ``mmu_captions``."""
    out, scenes = tmp_path_factory.mktemp("held_out"), prepared.scenes
    captions = [f"captions={scenes}/annotations/captions_val2014.json", f"images={scenes}/val2014"]
    assert call(prepare, "coco", *captions, f"vq={prepared.vq}", f"out={out}", "processes=1") == 0
    return out / "manifest.json"


def configured(run_folder: Path, *words: str) -> RunConfig:
    return load(run_folder / "config.yaml", ["evaluation.val={}", *words])


def refused(config: RunConfig) -> str:
    with pytest.raises((ConfigError, FileNotFoundError)) as error:
        build_validation(config, build_tokenizer(config.model), build_vq(config.model))
    return str(error.value)


def test_shards_of_either_task_are_opened(run_folder: Path, prepared: PreparedPaths, held_out: Path) -> None:
    config = configured(run_folder, f"data.val.t2i={held_out}", f"data.val.mmu={prepared.mmu_captions}")
    opened = build_validation(config, build_tokenizer(config.model), build_vq(config.model))
    assert {task: len(samples.shards) for task, samples in opened.items()} == {"mmu": 12, "t2i": 4}
    alone = configured(run_folder, f"data.val.t2i={held_out}")
    assert list(build_validation(alone, build_tokenizer(alone.model), build_vq(alone.model))) == ["t2i"]


def test_shards_that_cannot_be_measured_are_refused(run_folder: Path, prepared: PreparedPaths, tmp_path: Path) -> None:
    own = configured(run_folder, f"data.val.mmu={prepared.mmu_instruct}")
    assert refused(own).startswith(
        f"data.val.mmu={prepared.mmu_instruct} holds the samples that data.mmu trains on, so its loss would say "
        "nothing; name others"
    )
    other = configured(run_folder, f"data.val.mmu={prepared.t2i}")
    assert refused(other).startswith(f"data.val: data.mmu={prepared.t2i} holds json, vq but no jpg")
    assert "gone.json does not exist" in refused(configured(run_folder, f"data.val.t2i={tmp_path}/gone.json"))


def test_codes_of_another_image_tokenizer_are_refused(
    run_folder: Path, prepared: PreparedPaths, tmp_path: Path
) -> None:
    lines = '{"captions": ["a scene"], "tokens": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]}\n'
    (tmp_path / "codes.jsonl").write_text(lines)
    sizes = ["tokens_per_image=16", "codebook_size=15000", f"out={tmp_path}/val", "processes=1"]
    assert call(prepare, "pretokenized", f"annotations={tmp_path}/codes.jsonl", *sizes) == 0
    config = configured(run_folder, f"data.val.t2i={tmp_path}/val/manifest.json")
    assert f"the codes in {tmp_path}/val/manifest.json were made with VQ tokenizer unknown" in refused(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.val.t2i=m.json"], "is named, but evaluation.val is null, so nothing reads it; set evaluation.val={}"),
        (["evaluation.val={}"], "data.val.mmu and data.val.t2i is empty; name a shard manifest, or set evaluation"),
        (
            ["evaluation.val.every_n_steps=30", "data.val.t2i=m.json", "checkpoint.best=eval/val/loss_t2i"],
            "checkpoint.best=eval/val/loss_t2i is a loss; set checkpoint.best_is=lowest",
        ),
        (
            ["evaluation.val.every_n_steps=30", "data.val.t2i=m.json", "checkpoint.best=eval/val/loss_t2i"],
            "checkpoint.every_n_steps=1000 must divide evaluation.val.every_n_steps=30",
        ),
    ],
)
def test_contradictions_are_refused(run_folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(run_folder / "config.yaml", words)
    assert message in " ".join(str(error.value).split())


def test_the_doctor_reads_some_of_them(run_folder: Path, held_out: Path, prepared: PreparedPaths) -> None:
    def verdicts(config: RunConfig) -> dict[str, Verdict]:
        return {verdict.name: verdict for verdict in examine(config, Ranks())}

    found = verdicts(configured(run_folder, f"data.val.t2i={held_out}"))
    assert found["data.val, t2i"].state == "ok"
    assert found["data.val, t2i"].text.startswith("4 samples; 4 of them read")
    broken = verdicts(configured(run_folder, f"data.val.t2i={prepared.t2i}"))
    assert broken["data"].state == "failed"
    assert "holds the samples that data.t2i trains on" in broken["data"].text


def test_shards_kept_apart_from_others_than_the_trainings_are_warned_of(
    run_folder: Path, prepared: PreparedPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(prepared.mmu_captions.parent, tmp_path / "val"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["meta"] |= {"part": "val", "val_share": 0.02}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = configured(run_folder, f"data.val.mmu={folder / 'manifest.json'}")
    build_validation(config, build_tokenizer(config.model), build_vq(config.model))
    assert "val/manifest.json was kept apart from other shards than data.mmu=" in capsys.readouterr().err
