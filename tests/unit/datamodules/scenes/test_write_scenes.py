import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from datamodules.scenes import ScenesConfig, write_scenes
from datamodules.scenes.questions import ANSWERS
from datamodules.shards.folders import FolderError

SMALL = ScenesConfig(images=24, val_images=8, caption_share=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, SMALL)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(path: Path):
    return json.loads(path.read_text())


def test_coco_layout(folder: Path) -> None:
    for split, count in (("train", 24), ("val", 8)):
        content = load(folder / "annotations" / f"captions_{split}2014.json")
        assert set(content) == {"info", "licenses", "images", "annotations"}
        assert len(content["images"]) == count
        assert len(content["annotations"]) == 5 * count
        assert len({each["id"] for each in content["annotations"]}) == 5 * count
        for image in content["images"]:
            assert image["file_name"] == f"COCO_{split}2014_{image['id']:012d}.jpg"
            with Image.open(folder / f"{split}2014" / image["file_name"]) as picture:
                assert (picture.height, picture.width) == (image["height"], image["width"]) == (64, 64)


def test_image_ids_are_unique_over_the_splits(folder: Path) -> None:
    ids = [
        {image["id"] for image in load(folder / "annotations" / f"captions_{split}2014.json")["images"]}
        for split in ("train", "val")
    ]
    assert not ids[0] & ids[1]


def test_llava_layout(folder: Path) -> None:
    captions, instruct = (load(folder / "llava" / f"{name}.json") for name in ("captions", "instruct"))
    assert len(captions) == 24
    assert all([turn["from"] for turn in entry["conversations"]] == ["human", "gpt"] for entry in captions)
    assert {entry["conversations"][0]["value"] for entry in captions} == {"<image>"}
    assert len({entry["id"] for entry in instruct}) == len(instruct) > 2 * 24
    for entry in instruct:
        assert (folder / entry["image"]).is_file()
        turns = entry["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>\n")
        assert sum("<image>" in turn["value"] for turn in turns) == 1
        if turns[0]["value"] == "<image>\nDescribe the image.":
            continue
        assert len(turns) == 6
        for human, gpt in zip(turns[::2], turns[1::2], strict=True):
            assert human["value"].endswith("\nAnswer the question using a single word or phrase.")
            assert gpt["value"] in {*ANSWERS, "Yes", "No"} - {"yes", "no"}


def test_described_images_carry_true_captions(folder: Path) -> None:
    content = load(folder / "annotations" / "captions_train2014.json")
    names = {image["id"]: f"train2014/{image['file_name']}" for image in content["images"]}
    true = {(names[each["image_id"]], each["caption"]) for each in content["annotations"]}
    entries = load(folder / "llava" / "captions.json") + load(folder / "llava" / "instruct.json")
    described = [
        (entry["image"], entry["conversations"][1]["value"])
        for entry in entries
        if entry["conversations"][0]["value"] in ("<image>", "<image>\nDescribe the image.")
    ]
    assert len(described) > 24
    assert set(described) <= true


def test_benchmark_files(folder: Path) -> None:
    for split in ("random", "popular", "adversarial"):
        lines = (folder / "pope" / "coco" / f"coco_pope_{split}.json").read_text().splitlines()
        assert len(lines) == 6 * 8
        assert all((folder / "val2014" / json.loads(line)["image"]).is_file() for line in lines)
    records = load(folder / "gqa" / "testdev_balanced_questions.json")
    assert len(records) == 4 * 8
    for record in records.values():
        assert (folder / "gqa" / "images" / f"{record['imageId']}.jpg").is_file()


def test_no_validation_picture_is_a_training_picture(folder: Path) -> None:
    train = {path.read_bytes() for path in (folder / "train2014").iterdir()}
    assert not train & {path.read_bytes() for path in (folder / "val2014").iterdir()}


def test_the_same_configuration_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(folder)


def test_writing_again_touches_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_scenes(folder, SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_configuration_is_refused_and_nothing_is_overwritten(folder: Path) -> None:
    before = digests(folder)
    with pytest.raises(FolderError, match=r"images is 24 there and 25 here.*Choose another folder"):
        write_scenes(folder, ScenesConfig(images=25, val_images=8, caption_share=0.5))
    assert digests(folder) == before


def test_a_strangers_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match=r"is not empty and holds no scenes\.json"):
        write_scenes(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": 0}, "images=0 must be at least 1"),
        ({"max_objects": 4}, "max_objects=4 must satisfy"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects=3 and max_objects=2"),
        ({"turns": 9}, r"turns=9 must lie in \[1, 4\]"),
        ({"kinds": ("exist", "taste")}, "kinds has unknown entries taste; known are exist"),
        ({"kinds": ("colorQuery",)}, "kinds must include one that every scene allows"),
        ({"caption_share": 1.5}, r"caption_share=1.5 must lie in \[0, 1\]"),
    ],
)
def test_broken_rules_are_named(tmp_path: Path, values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / "scenes", ScenesConfig(**values))
    assert not list(tmp_path.iterdir())
