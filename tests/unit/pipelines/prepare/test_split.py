"""val_share keeps the samples of some pictures apart, the same ones every time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.scenes.prepare import PreparedPaths
from datamodules.shards.reader import ShardSet
from pipelines.prepare import __main__ as prepare
from tests.verbs import call

Words = list[str]


def conversations(scenes: Path, folder: Path) -> Words:
    """Each picture in several entries, one of them written as LRV-Instruct writes it."""
    entries = json.loads((scenes / "llava/captions.json").read_text())
    again = [{"image_id": each["image"], "question": "What?", "answer": "It."} for each in entries]
    (folder / "mix.json").write_text(json.dumps([*entries, *again, *entries]))
    return ["llava", f"annotations={folder}/mix.json", f"images={scenes}"]


def captions(scenes: Path, folder: Path) -> Words:
    return ["coco", f"captions={scenes}/annotations/captions_train2014.json", f"images={scenes}/train2014"]


def listed(scenes: Path, folder: Path) -> Words:
    lines = [json.dumps({"file": path.name, "caption": "a scene"}) + "\n" for path in (scenes / "train2014").iterdir()]
    (folder / "captions.jsonl").write_text("".join(lines))
    return ["images", f"captions={folder}/captions.jsonl", f"images={scenes}/train2014"]


def columns(scenes: Path, folder: Path) -> Words:
    from datasets import Dataset

    pictures = [path.read_bytes() for path in sorted((scenes / "train2014").iterdir())] * 2
    table = {"image": pictures, "caption": [f"caption {number}" for number in range(len(pictures))]}
    Dataset.from_dict(table).to_parquet(folder / "data.parquet")
    return ["hf", f"dataset={folder}/data.parquet", "caption_column=caption"]


def codes(scenes: Path, folder: Path) -> Words:
    rows = [{"captions": [f"caption {number}"], "tokens": [number % 12] * 16} for number in range(24)]
    rows[3]["tokens"] = [[3] * 8, [3] * 8]  # the same picture, as rows
    (folder / "codes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["pretokenized", f"annotations={folder}/codes.jsonl", "tokens_per_image=16", "codebook_size=16"]


def pictures(manifest: Path) -> list[bytes]:
    """The picture, or its codes, of every sample."""
    shards = ShardSet.open(manifest)
    return [samples.get("jpg") or samples["vq"] for samples in (shards.get(place) for place in range(len(shards)))]


@pytest.mark.parametrize(
    ("words", "samples", "share"),
    [(conversations, 36, 0.3), (captions, 12, 0.3), (listed, 12, 0.3), (columns, 24, 0.5), (codes, 24, 0.3)],
)
def test_no_picture_is_on_both_sides(
    prepared: PreparedPaths,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: Callable[[Path, Path], Words],
    samples: int,
    share: float,
) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    given = words(prepared.scenes, tmp_path)
    given += [] if given[0] in ("llava", "pretokenized") else [f"vq={prepared.vq}"]
    given += ["processes=1", "name=mine", f"val_share={share}"]
    assert call(prepare, *given, f"out={tmp_path}/one") == 0
    said = capsys.readouterr().out
    train, val = (tmp_path / "one" / part / "manifest.json" for part in ("", "val"))
    sides = pictures(train), pictures(val)
    assert all(sides)
    assert set(sides[0]).isdisjoint(sides[1])
    assert len(sides[0]) + len(sides[1]) == samples
    assert f"{train}: {len(sides[0])} samples" in said
    assert f"{val}: {len(sides[1])} samples" in said

    assert call(prepare, *given, f"out={tmp_path}/two") == 0  # the same pictures again, to the byte
    for part in ("manifest.json", "val/manifest.json"):
        assert (tmp_path / "one" / part).read_bytes() == (tmp_path / "two" / part).read_bytes()
    capsys.readouterr()
    assert call(prepare, *given, f"out={tmp_path}/one") == 0
    assert "was built before from the same texts and settings" in capsys.readouterr().out


def test_a_larger_share_holds_the_pictures_of_a_smaller_one(prepared: PreparedPaths, tmp_path: Path) -> None:
    held = []
    for share in (0.2, 0.6):
        given = [*captions(prepared.scenes, tmp_path), f"vq={prepared.vq}", f"out={tmp_path}/{share}", "processes=1"]
        assert call(prepare, *given, f"val_share={share}") == 0
        shards = ShardSet.open(tmp_path / str(share) / "val/manifest.json")
        held.append({shards.key(place) for place in range(len(shards))})
    assert held[0] < held[1]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("0.001", "val_share=0.001 of the 12 entries leaves none for val; choose another"),
        ("0.999", "val_share=0.999 of the 12 entries leaves none for training; choose another"),
        ("1.0", "val_share=1.0 must lie in [0, 1); 0.02 keeps a fiftieth apart"),
        ("-0.1", "val_share=-0.1 must lie in [0, 1); 0.02 keeps a fiftieth apart"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused(
    prepared: PreparedPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: str, message: str
) -> None:
    given = [*captions(prepared.scenes, tmp_path), f"vq={prepared.vq}", f"out={tmp_path}/out", "processes=1"]
    assert call(prepare, *given, f"val_share={share}") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
