import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from datamodules.scenes.prepare import PreparedPaths
from datamodules.shards.reader import ShardSet
from pipelines.prepare import __main__ as prepare
from pipelines.prepare.__main__ import SOURCES
from tests.verbs import call

ROOT = Path(__file__).parents[4]


def llava_of(scenes: Path, out: Path) -> list[str]:
    return [f"annotations={scenes}/llava/captions.json", f"images={scenes}", f"out={out}", "processes=1", "name=mine"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_verb_builds_from_official_files(prepared: PreparedPaths, tmp_path: Path, capsys) -> None:
    scenes = prepared.scenes
    coco = [
        f"captions={scenes}/annotations/captions_val2014.json",
        f"images={scenes}/val2014",
        f"vq={prepared.vq}",
        f"out={tmp_path}/t2i",
        "processes=1",
    ]
    assert call(prepare, "llava", *llava_of(scenes, tmp_path / "mmu")) == 0
    assert call(prepare, "coco", *coco) == 0
    said = capsys.readouterr().out
    assert "mmu/manifest.json: 12 samples in 1 shards (rejected 0, samples 12)" in said
    assert "t2i/manifest.json: 4 samples in 1 shards" in said
    assert "  rejected" not in said
    assert ShardSet.open(tmp_path / "t2i" / "manifest.json").key(0) == "coco2014-train-000000500001"
    before = contents(tmp_path / "t2i")
    assert call(prepare, "coco", *coco) == 0
    assert contents(tmp_path / "t2i") == before
    capsys.readouterr()
    assert call(prepare, "coco", *coco, "batch=3") == 2
    assert "already holds a data set, made from other files or settings" in capsys.readouterr().err


def test_images_with_captions_and_a_hugging_face_data_set(
    prepared: PreparedPaths, tmp_path: Path, capsys, monkeypatch
) -> None:
    from datasets import Dataset, config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pictures = sorted((prepared.scenes / "train2014").iterdir())[:3]
    lines = [json.dumps({"file": path.name, "caption": "a scene"}) + "\n" for path in pictures]
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    images = [f"images={pictures[0].parent}", f"captions={tmp_path}/captions.jsonl", f"vq={prepared.vq}"]
    assert call(prepare, "images", *images, f"out={tmp_path}/images", "processes=1") == 0
    columns = {"image": [path.read_bytes() for path in pictures], "q": ["What?"] * 3, "a": ["A scene."] * 3}
    Dataset.from_dict(columns).to_parquet(tmp_path / "data.parquet")
    hf = [f"dataset={tmp_path}/data.parquet", "question_column=q", "answer_column=a", f"out={tmp_path}/hf"]
    assert call(prepare, "hf", *hf, "processes=1", "licence=CC0") == 0
    assert len(ShardSet.open(tmp_path / "images" / "manifest.json")) == 3
    assert ShardSet.open(tmp_path / "hf" / "manifest.json").meta["licence"] == "CC0"
    assert capsys.readouterr().out.count(": 3 samples in 1 shards") == 2


def test_rejects_are_reported_by_their_kind(tmp_path: Path, capsys) -> None:
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    entries = [{"image": name, "conversations": talk} for name in ("a.png", "b.png", "c.png", "")]
    entries += [{"image": "a.png", "conversations": kind} for kind in ([], [{}, {}], talk[::-1], [talk[0], 3])]
    entries += [{"image": "a.png", "conversations": [talk[0], {"from": "gpt", "value": value}]} for value in ("", 7)]
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    words = [f"annotations={tmp_path}/mix.json", f"images={tmp_path}", f"out={tmp_path}/out", "processes=1"]
    assert call(prepare, "llava", *words) == 0
    said = capsys.readouterr().out
    assert "1 samples in 1 shards (converted_from_png 1, rejected 9, samples 1)" in said
    assert (
        "\n  rejected 2: image does not exist\n  rejected 2: turn 0 is not from 'human'\n  rejected 1: no image\n"
        in said
    )
    assert f"  reasons for each (and 2 further kinds): {tmp_path}/out/rejected.jsonl\n" in said


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    """Words for a build that takes seconds: large pictures, so that it can be stopped in the middle."""
    file = io.BytesIO()
    Image.effect_noise((1500, 1500), 60).convert("RGB").save(file, "JPEG")
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    (tmp_path / "mix.json").write_text(json.dumps([{"image": "a.jpg", "conversations": talk}] * 160))
    return [f"annotations={tmp_path}/mix.json", f"images={tmp_path}", "per_shard=4"]


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(many: list[str], tmp_path: Path, capsys) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.prepare", "llava", *many, f"out={folder}", "processes=2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(folder.glob(".build/llava-*.json")):
        assert process.poll() is None, "the build ended before it could be stopped"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "stopped by Ctrl-C; run the same command again to continue; finished shards are kept\n"
    assert not (folder / "manifest.json").exists()
    finished = len(list(folder.glob(".build/llava-*.json")))
    assert call(prepare, "llava", *many, f"out={folder}", "processes=1") == 0
    assert f"llava: continuing after {4 * finished} of 160\n" in capsys.readouterr().out
    assert call(prepare, "llava", *many, f"out={tmp_path}/undisturbed", "processes=2") == 0
    assert contents(folder) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes"], "folder has no value and needs one"),
        (["scenes", "folder=x", "imges=3"], "imges"),
        (["scenes", "folder=x", "images=many"], "images"),
        (["llava", "annotations=none.json", "images=.", "out=x"], "conversations file none.json does not exist"),
        (["hf", "dataset=none", "out=x"], "name either caption_column"),
        (["images", "images=none", "vq=none", "out=x"], "image folder none is not a folder"),
        (["coco", "captions=a", "images=b", "vq=c", "out=d", "processes=-1"], "processes=-1 must be at least 0"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str, capsys) -> None:
    assert call(prepare, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_an_unknown_source_is_refused_with_those_there_are(capsys) -> None:
    assert call(prepare, "cocoa") == 2
    said = capsys.readouterr().err
    assert all(f"'{source}'" in said for source in SOURCES)


def test_the_help_shows_the_keys_and_an_example_of_each_source(capsys) -> None:
    assert call(prepare, "--help") == 0
    everything = capsys.readouterr().out
    for name, source in SOURCES.items():
        assert call(prepare, name, "--help") == 0
        own = capsys.readouterr().out
        for said in (own, everything):
            assert f"python -m pipelines.prepare {name} {source.example}" in said
        given = {word.split("=")[0] for word in source.example.split()}
        keys = {line.split()[0] for line in own.splitlines() if " default " in line or " required" in line}
        required = {line.split()[0] for line in own.splitlines() if line.endswith(" required")}
        assert required <= given <= keys
    assert "verify" in everything


def test_heavy_libraries_are_not_needed_to_read_a_configuration() -> None:
    heavy = ("torch", "webdataset", "tokenizers", "datasets", "rich")
    code = f"import sys, pipelines.prepare.__main__; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[]"
