"""Every kind of picture that data sets hold, through the builders and back through the readers."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from datamodules.images import decode
from datamodules.shards.reader import ShardSet
from datamodules.sources.coco import CocoConfig, build_coco
from datamodules.sources.llava import LlavaConfig, build_llava
from tests.unit.datamodules.sources.conftest import HEIGHT, WIDTH, broken, usable

NAMES = sorted([*usable(), *broken(), "missing.jpg"])
ANSWER = 'Grüße 犬 🐕 \u2028 "quoted" \\ and\ttabbed'


def reasons(folder: Path) -> dict[str, str]:
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {each["key"]: each["reason"] for each in map(json.loads, lines)}


def check_reasons(found: dict[str, str], keys: dict[str, str]) -> None:
    """``keys`` by file name."""
    assert found.keys() == {keys[name] for name in [*broken(), "missing.jpg"]}
    assert found[keys["missing.jpg"]] == "image does not exist: missing.jpg"
    for name, (_, start) in broken().items():
        assert found[keys[name]].startswith(f"{start}{name}"), found[keys[name]]


@pytest.fixture
def mmu(pictures: Path, tmp_path: Path) -> Path:
    talk = [{"from": "human", "value": "What is <image> this?"}, {"from": "gpt", "value": ANSWER}]
    entries = [{"id": name, "image": name, "conversations": talk} for name in NAMES]
    empty = [talk[0], {"from": "gpt", "value": ""}]
    entries.append({"id": "empty", "image": "plain.jpg", "conversations": empty})
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    config = LlavaConfig(
        annotations=str(tmp_path / "mix.json"),
        images=str(pictures),
        out=str(tmp_path / "mmu"),
        processes=1,
        per_shard=4,
    )
    return build_llava(config)


def test_conversations_with_pictures_of_every_kind(mmu: Path) -> None:
    shards = ShardSet.open(mmu)
    found = {}
    for place in range(len(shards)):
        sample = shards.get(place)
        content = json.loads(sample["json"])
        assert content["conversations"][1]["value"] == ANSWER
        found[content["image"]] = sample["jpg"]
    assert sorted(found) == sorted(usable())
    for name, payload in found.items():
        original = usable()[name]
        assert (payload == original) == original.startswith(b"\xff\xd8"), name
        assert Image.open(io.BytesIO(payload)).format in ("JPEG", "MPO")
        picture = decode(payload)
        assert (picture.mode, picture.size) == ("RGB", (WIDTH, HEIGHT)), name
        pixels = np.asarray(picture, dtype=int)
        left, right = (0, 255) if name.startswith("black") else (60, 180)
        # away from the border between the halves, where JPEG rings
        assert abs(pixels[:, :16] - left).max() <= 12, name
        assert abs(pixels[:, -16:] - right).max() <= 12, name
    rejected = reasons(mmu.parent)
    assert rejected.pop(f"llava-{len(NAMES):08d}") == "turn 1 is empty"
    check_reasons(rejected, {name: f"llava-{row:08d}" for row, name in enumerate(NAMES)})
    counts = shards.meta["counts"]
    assert counts["samples"] == len(usable())
    assert {key: value for key, value in counts.items() if key.startswith("converted")} == {
        "converted_from_png": 8,
        "converted_from_webp": 1,
        "converted_from_bmp": 1,
        "converted_from_gif": 1,
    }
    assert counts["transparency_on_white"] == 1


def test_captions_with_pictures_of_every_kind(pictures: Path, vq: Path, tmp_path: Path) -> None:
    images = [{"id": row, "file_name": name} for row, name in enumerate(NAMES)]
    captions = [{"id": row, "image_id": row, "caption": f"Bild 犬 {row}"} for row in range(len(NAMES))]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    manifest = build_coco(
        CocoConfig(
            captions=str(tmp_path / "captions.json"),
            images=str(pictures),
            vq=str(vq),
            out=str(tmp_path / "t2i"),
            name="odd",
            processes=1,
            per_shard=5,
            batch=3,
        )
    )
    shards = ShardSet.open(manifest)
    assert len(shards) == len(usable())
    assert shards.meta["counts"]["transparency_on_white"] == 1
    for place in range(len(shards)):
        sample = shards.get(place)
        content = json.loads(sample["json"])
        name = NAMES[content["image_id"]]
        assert content["captions"] == [f"Bild 犬 {content['image_id']}"]
        expected = [0, 4, 0, 4] if name.startswith("black") else [1, 3, 1, 3]
        assert np.frombuffer(sample["vq"], "<u2").tolist() == expected, name
    check_reasons(reasons(manifest.parent), {name: f"odd-{row:012d}" for row, name in enumerate(NAMES)})


def test_webdataset_reads_what_was_built(mmu: Path) -> None:
    shards = ShardSet.open(mmu)
    pattern = json.loads(mmu.read_text())["pattern"]
    read = list(webdataset.WebDataset(str(mmu.parent / pattern), shardshuffle=False))
    assert [(each["__key__"], each["json"], each["jpg"]) for each in read] == [
        (shards.key(place), shards.get(place)["json"], shards.get(place)["jpg"]) for place in range(len(shards))
    ]
