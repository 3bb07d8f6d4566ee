import json
import os
from pathlib import Path

import numpy as np
import pytest

from datamodules.shards.reader import ShardSet
from datamodules.sources.images import ImagesConfig, build_images
from tests.unit.datamodules.sources.conftest import encoded, halves


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("b.jpg", "sub/a.PNG", "sub/c.jpeg"):
        (tmp_path / "images" / name).write_bytes(encoded(halves(), "PNG" if name.endswith("PNG") else "JPEG"))
    return tmp_path


def config(folder: Path, vq: Path, **values) -> ImagesConfig:
    return ImagesConfig(
        **{"images": str(folder / "images"), "vq": str(vq), "out": str(folder / "out"), "processes": 1, **values}
    )


def captions(shards: ShardSet) -> dict[str, list[str]]:
    contents = [json.loads(shards.get(place)["json"]) for place in range(len(shards))]
    return {content["image"]: content["captions"] for content in contents}


def reasons(folder: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]


def test_captions_of_a_file_of_lines(folder: Path, vq: Path) -> None:
    lines = [
        {"file": "sub/a.PNG", "caption": " Ein  Bild\n 犬 "},
        {"file": "b.jpg", "captions": [f"caption {n}" for n in range(7)]},
        {"file": "sub/a.PNG", "caption": "another"},
        {"file": "gone.jpg", "caption": "gone"},
        {"file": "../b.jpg", "caption": "out"},
        {"file": "sub/c.jpeg", "captions": [" ", ""]},
        {"file": "sub/d.jpeg", "caption": None},
    ]
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shards = ShardSet.open(build_images(config(folder, vq, captions=str(path), licence="CC0")))
    assert captions(shards) == {
        "b.jpg": [f"caption {n}" for n in range(7)],
        "sub/a.PNG": ["Ein Bild 犬", "another"],
    }
    assert all(np.frombuffer(shards.get(place)["vq"], "<u2").tolist() == [1, 3, 1, 3] for place in (0, 1))
    assert reasons(folder) == [
        "image lies outside the image folder: ../b.jpg",
        "image does not exist: gone.jpg",
        "no captions",
        "caption is not a text: NoneType",
    ]
    assert (shards.meta["source"], shards.meta["licence"]) == ("images", "CC0")
    assert shards.meta["captions"]["file"] == "captions.jsonl"


def test_captions_beside_the_images(folder: Path, vq: Path) -> None:
    (folder / "images" / "b.txt").write_text("one\n\n zwei ü \n", encoding="utf-8")
    (folder / "images" / "sub" / "a.txt").write_bytes(b"no \xff utf-8")
    shards = ShardSet.open(build_images(config(folder, vq)))
    assert captions(shards) == {"b.jpg": ["one", "zwei ü"]}
    assert reasons(folder) == ["caption is not valid Unicode: surrogates not allowed", "no captions"]


def test_linked_folders_are_entered_once_and_what_macos_left_is_counted(folder: Path, vq: Path) -> None:
    images, disk = folder / "images", folder / "disk"
    (disk / "deep").mkdir(parents=True)
    for place in (images / "b.jpg", disk / "d.jpg", disk / "deep" / "e.jpg"):
        place.write_bytes(encoded(halves(), "JPEG"))
        place.with_suffix(".txt").write_text(place.stem)
        (place.parent / f"._{place.name}").write_bytes(b"\0\5\x16\7")
    (images / "linked").symlink_to(disk)
    (images / "linked_again").symlink_to(disk)
    (disk / "deep" / "back").symlink_to(images)
    (images / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (images / "gone.txt").write_text("gone")
    shards = ShardSet.open(build_images(config(folder, vq)))
    assert captions(shards) == {"b.jpg": ["b"], "linked/d.jpg": ["d"], "linked/deep/e.jpg": ["e"]}
    assert sorted(reasons(folder)) == ["image does not exist: gone.jpg", "no captions", "no captions"]
    assert shards.meta["counts"] == {"samples": 3, "rejected": 3, "macos_files_left_out": 3}


def test_names_that_are_not_unicode_are_rejected_with_the_reason(folder: Path, vq: Path) -> None:
    for name in (b"caf\xe9", b"b"):
        path = os.fsencode(folder / "images") + b"/" + name
        Path(os.fsdecode(path + b".jpg")).write_bytes(encoded(halves(), "JPEG"))
        Path(os.fsdecode(path + b".txt")).write_text("a cup")
    shards = ShardSet.open(build_images(config(folder, vq)))
    assert captions(shards) == {"b.jpg": ["a cup"]}
    assert "image name is not valid Unicode: surrogates not allowed" in reasons(folder)


def test_other_captions_make_another_plan(folder: Path, vq: Path) -> None:
    (folder / "images" / "b.txt").write_text("one")
    build_images(config(folder, vq))
    (folder / "images" / "b.txt").write_text("two")
    with pytest.raises(FileExistsError, match="already holds a data set, made from other files"):
        build_images(config(folder, vq))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", r"none of the 0 entries for .* can be used"),
        ('"x"', r"line 1 of captions file .*captions\.jsonl: is 'x', expected an object"),
        ('{"caption": "x"}', "line 1 of .*: file is missing"),
        ('{"file": 3, "caption": "x"}', "file is 3, expected a text"),
        ('{"file": "\\ud83d", "caption": "x"}', r"file is '.ud83d', expected valid Unicode"),
        ('{"file": "x"}', r"captions\.jsonl: an entry must hold \"file\" and one of \"caption\" and \"captions\", not"),
        ('{"file": "x", "caption": "a", "captions": ["b"]}', 'one of "caption" and "captions"'),
        ('{"file": "x", "n": 1' + "0" * 5000 + "}", r"line 1 of captions file .*captions\.jsonl, .*is not valid"),
        ("{", r"line 1 of captions file .*captions\.jsonl, .*is not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1", r"captions\.jsonl is a git-lfs pointer"),
    ],
)
def test_lines_of_another_layout_are_refused(folder: Path, vq: Path, line: str, message: str) -> None:
    (folder / "captions.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        build_images(config(folder, vq, captions=str(folder / "captions.jsonl")))


def test_missing_files_are_named(folder: Path, vq: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"captions file .*none\.jsonl does not exist"):
        build_images(config(folder, vq, captions=str(folder / "none.jsonl")))
    with pytest.raises(FileNotFoundError, match=r"image folder .*none is not a folder"):
        build_images(config(folder, vq, images=str(folder / "none")))
