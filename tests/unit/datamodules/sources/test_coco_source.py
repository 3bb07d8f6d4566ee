import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.shards.reader import ShardSet
from datamodules.sources.coco import CocoConfig, build_coco
from datamodules.sources.t2i import describe_vq, device_of, processes_for_pictures
from modules.omnimamba.vq import PatchKMeans

LEVELS = torch.tensor([0, 60, 120, 180, 240], dtype=torch.uint8)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Four usable images of different shapes, ids out of order, and an image tokenizer of grey levels."""
    (tmp_path / "images").mkdir()
    vq = PatchKMeans(LEVELS[:, None].expand(5, 48).contiguous(), image_size=8, patch_size=4)
    vq.save(tmp_path / "vq.safetensors")
    images, annotations = [], []
    for image_id, (width, height) in {42: (8, 8), 7: (24, 8), 1000: (16, 32), 9: (8, 8)}.items():
        name = f"COCO_train2014_{image_id:012d}.jpg"
        Image.fromarray(picture(width, height)).save(tmp_path / "images" / name, quality=95)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for number in (4, 0, 3, 1, 2):
            caption = {
                "id": image_id * 10 + number,
                "image_id": image_id,
                "caption": f" Caption {number}\n of {image_id}. ",
            }
            annotations.append(caption)
    write(tmp_path, images, annotations)
    return tmp_path


def write(folder: Path, images, annotations) -> None:
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(content))


def picture(width: int, height: int) -> np.ndarray:
    """Dark on the left and light on the right of the central square, black and white beyond it."""
    side = min(width, height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    left, top = (width - side) // 2, (height - side) // 2
    pixels[top : top + side, left : left + side // 2] = 60
    pixels[top : top + side, left + side // 2 : left + side] = 180
    return pixels


def config(folder: Path, **values) -> CocoConfig:
    paths = {"captions": "captions.json", "images": "images", "vq": "vq.safetensors", "out": "out"}
    defaults = {"name": "coco2014", "processes": 1}
    return CocoConfig(**{**{key: str(folder / name) for key, name in paths.items()}, **defaults, **values})


def build(folder: Path, **values) -> ShardSet:
    return ShardSet.open(build_coco(config(folder, **values)))


def test_samples_in_order_of_id_with_five_captions_and_codes(official: Path) -> None:
    shards = build(official, batch=3)
    keys = [f"coco2014-{image_id:012d}" for image_id in (7, 9, 42, 1000)]
    assert [shards.key(place) for place in range(4)] == keys
    for place, image_id in enumerate((7, 9, 42, 1000)):
        sample = shards.get(place)
        expected = {"captions": [f"Caption {n} of {image_id}." for n in range(5)], "image_id": image_id}
        assert json.loads(sample["json"]) == expected
        # the middle square: dark left half, light right half, whatever lies beyond it
        assert np.frombuffer(sample["vq"], "<u2").tolist() == [1, 3, 1, 3]


def test_the_batch_size_changes_nothing(official: Path) -> None:
    one, three = (build(official, batch=batch, out=str(official / f"out{batch}")) for batch in (1, 3))
    assert one.fingerprint == three.fingerprint


def test_the_manifest_says_where_everything_came_from(official: Path) -> None:
    meta = build(official).meta
    assert meta["source"] == "coco"
    assert meta["licence"].startswith("annotations CC BY 4.0")
    assert meta["captions"]["file"] == "captions.json"
    assert meta["vq"]["kind"] == "patch_kmeans"
    assert (meta["vq"]["codebook_size"], meta["vq"]["image_size"], meta["vq"]["tokens_per_image"]) == (5, 8, 4)
    assert meta["vq"]["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert len(meta["vq"]["fingerprint"]) == len(meta["captions"]["sha256"]) == 64
    counts = {"samples": 4, "rejected": 0, "captions_left_out": 0, "images_with_fewer_captions": 0}
    assert meta["counts"] == counts
    assert (official / "out" / "rejected.jsonl").read_text() == ""


def test_more_and_fewer_captions_are_counted(official: Path) -> None:
    content = json.loads((official / "captions.json").read_text())
    annotations = [each for each in content["annotations"] if each["id"] not in (70, 71)]
    annotations.append({"id": 999, "image_id": 9, "caption": "A sixth."})
    annotations.append({"id": 998, "image_id": 9, "caption": "  \n"})
    write(official, content["images"], annotations)
    shards = build(official)
    assert json.loads(shards.get(0)["json"])["captions"] == [f"Caption {n} of 7." for n in (2, 3, 4)]
    assert "A sixth." not in json.loads(shards.get(1)["json"])["captions"]
    assert shards.meta["counts"]["captions_left_out"] == 1
    assert shards.meta["counts"]["images_with_fewer_captions"] == 1


def test_what_cannot_be_used_is_written_down(official: Path) -> None:
    content = json.loads((official / "captions.json").read_text())
    images = [*content["images"], {"id": 5, "file_name": "5.jpg"}]
    annotations = [each for each in content["annotations"] if each["image_id"] != 42]
    annotations.append({"id": 1, "image_id": 6, "caption": "A stray."})
    annotations.append({"id": 2, "image_id": 5, "caption": "A picture that is not there."})
    write(official, images, annotations)
    broken = official / "images" / "COCO_train2014_000000000009.jpg"
    broken.write_bytes(broken.read_bytes()[:-60])
    shards = build(official)
    assert [shards.key(place)[-4:] for place in range(len(shards))] == ["0007", "1000"]
    lines = [json.loads(line) for line in (official / "out" / "rejected.jsonl").read_text().splitlines()]
    reasons = {int(line["key"].removeprefix("coco2014-")): line["reason"] for line in lines}
    assert reasons[5] == "image does not exist: 5.jpg"
    assert reasons[6] == "captions for an image that the file does not list"
    assert reasons[9].startswith("image does not decode: COCO_train2014_000000000009.jpg (")
    assert reasons[42] == "no captions"
    assert shards.meta["counts"]["rejected"] == 4


def test_nothing_usable_is_an_error(official: Path) -> None:
    for path in (official / "images").iterdir():
        path.write_bytes(b"")
    message = r"none of the 4 entries for .*out can be used \(coco2014-000000000007: image is empty: COCO_train2014_"
    with pytest.raises(ValueError, match=message):
        build_coco(config(official))
    assert not (official / "out" / "manifest.json").exists()
    assert len((official / "out" / "rejected.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("captions.json", r"captions file .*captions\.json does not exist"),
        ("vq.safetensors", r"image tokenizer .*vq\.safetensors does not exist"),
    ],
)
def test_a_missing_file_is_named(official: Path, missing: str, message: str) -> None:
    (official / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        build_coco(config(official))
    assert not (official / "out").exists()


def test_a_missing_image_folder_is_named(official: Path) -> None:
    (official / "images").rename(official / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"image folder .*images is not a folder"):
        build_coco(config(official))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"captions file .*captions\.json is not valid JSON"),
        ("[]", r"captions file .*captions\.json: is \[\], expected an object"),
        ('{"images": [{"id": 1}], "annotations": []}', r"captions\.json: images\[0\]\.file_name is missing"),
        ('{"images": [{"id": 1, "file_name": null}], "annotations": []}', r"file_name is null, expected a text"),
        (
            '{"images": [{"id": 1, "file_name": ""}], "annotations": []}',
            r"file_name is '', expected a text that is not",
        ),
        (
            '{"images": [{"id": -1, "file_name": "a"}], "annotations": []}',
            r"images\[0\]\.id is -1, expected at least 0",
        ),
        ('{"images": {}, "annotations": []}', r"images is {}, expected a list"),
        ('{"images": []}\n{"annotations": []}', r"captions\.json holds several JSON values, but must hold one"),
        ("version https://git-lfs.github.com/spec/v1", r"captions\.json is a git-lfs pointer"),
        (
            '{"images": [{"id": "x", "file_name": "a"}], "annotations": []}',
            r"captions\.json: images\[0\]\.id is 'x', expected a whole number",
        ),
        (
            '{"images": [], "annotations": [{"id": 1.5, "image_id": 1, "caption": "a"}]}',
            r"captions\.json: annotations\[0\]\.id is 1\.5, expected a whole number",
        ),
        (
            '{"images": [], "annotations": [{"id": 1, "image_id": "one", "caption": "a"}]}',
            r"captions\.json: annotations\[0\]\.image_id is 'one', expected a whole number",
        ),
        ("[" * 100_000, r"captions\.json is nested too deeply to be read"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}',
            "lists 2 images but only 1 different ids",
        ),
    ],
)
def test_another_layout_is_refused(official: Path, content: str, message: str) -> None:
    (official / "captions.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        build_coco(config(official))


def test_pictures_are_turned_upright_before_they_are_cropped(official: Path) -> None:
    """A camera held on its side: stored dark over light, seen dark beside light."""
    name = "COCO_train2014_000000000009.jpg"
    exif = Image.Exif()
    exif[0x0112] = 8
    stored = np.rot90(picture(8, 8), k=-1)
    Image.fromarray(stored).save(official / "images" / name, quality=95, exif=exif)
    assert np.frombuffer(build(official).get(1)["vq"], "<u2").tolist() == [1, 3, 1, 3]


def test_unicode_and_hostile_captions(official: Path) -> None:
    content = json.loads((official / "captions.json").read_text())
    for each in content["annotations"]:
        each["caption"] = {7: "Ein Hündchen 犬 🐕", 9: "half a \ud83d"}.get(each["image_id"], each["caption"])
    write(official, content["images"], content["annotations"])
    shards = build(official)
    assert json.loads(shards.get(0)["json"])["captions"] == ["Ein Hündchen 犬 🐕"] * 5
    assert "caption is not valid Unicode: surrogates not allowed" in (official / "out" / "rejected.jsonl").read_text()


def test_other_processes_give_the_same_bytes(official: Path) -> None:
    folders = [official / f"out{processes}" for processes in (1, 2)]
    for processes, folder in zip((1, 2), folders, strict=True):
        build_coco(config(official, out=str(folder), processes=processes, per_shard=2, batch=3))
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert len(one) == 6


def test_another_tokenizer_in_the_same_place_is_not_mistaken_for_the_first(official: Path, monkeypatch) -> None:
    def codes(out: str) -> list[int]:
        return np.frombuffer(build(official, out=str(official / out)).get(1)["vq"], "<u2").tolist()

    def write_levels(levels: torch.Tensor) -> None:
        codebook = levels[:, None].expand(5, 48).contiguous()
        PatchKMeans(codebook, image_size=8, patch_size=4).save(official / "vq.safetensors")

    assert codes("first") == [1, 3, 1, 3]
    write_levels(LEVELS.flip(0))
    assert codes("second") == [3, 1, 3, 1]

    def changed(path: str) -> dict:
        write_levels(LEVELS + 1)  # one that no build has loaded yet
        found = describe_vq(path)
        write_levels(LEVELS)
        return found

    write_levels(LEVELS.roll(1))
    monkeypatch.setattr("datamodules.sources.coco.describe_vq", changed)
    with pytest.raises(ValueError, match=r"vq\.safetensors was changed while shards were built with it; restore it"):
        codes("third")


def test_workers_take_the_gpus_in_turn(monkeypatch) -> None:
    paths = {"captions": "", "images": "", "vq": "", "out": ""}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of(worker) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(96))
    assert [processes_for_pictures(CocoConfig(**paths, processes=n)) for n in (0, 64)] == [32, 64]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of(5) == "cpu"
    assert processes_for_pictures(CocoConfig(**paths)) == 96


def test_problems() -> None:
    paths = {"captions": "", "images": "", "vq": "", "out": ""}
    assert CocoConfig(**paths).problems() == []
    assert CocoConfig(**paths, batch=0, per_shard=0, processes=-1).problems() == [
        "per_shard=0 must be at least 1",
        "processes=-1 must be at least 0; 0 uses all cores",
        "batch=0 must be at least 1",
    ]
