import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.shards import ShardSet
from datamodules.sources.llava import LlavaConfig, build_llava, conversation_fault


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def entry(image: str = "coco/a.jpg", *values: str):
    return {"id": "a", "image": image, "conversations": turns(*(values or ("<image>\nWhat?", "That.")))}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    (tmp_path / "images" / "coco").mkdir(parents=True)
    pixels = np.arange(3 * 20 * 30, dtype=np.uint8).reshape(20, 30, 3)
    Image.fromarray(pixels).save(tmp_path / "images" / "coco" / "a.jpg", quality=30)
    Image.fromarray(pixels).save(tmp_path / "images" / "coco" / "b.png")
    (tmp_path / "images" / "coco" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    return tmp_path


def build(folder: Path, entries, **values) -> ShardSet:
    (folder / "mix.json").write_text(json.dumps(entries))
    return ShardSet.open(build_llava(config(folder, **values)))


def config(folder: Path, **values) -> LlavaConfig:
    paths = {"annotations": "mix.json", "images": "images", "out": "out"}
    return LlavaConfig(**{key: str(folder / name) for key, name in paths.items()}, **values)


def test_conversations_and_original_bytes(official: Path) -> None:
    one, two = entry(), entry("coco/a.jpg", "<image>\nWhat?", "That.", "And?", "This.")
    shards = build(official, [one, {**two, "id": 17, "model": "x"}], name="mix")
    assert [shards.key(place) for place in (0, 1)] == ["mix-00000000", "mix-00000001"]
    assert json.loads(shards.get(1)["json"]) == {
        "id": "17",
        "conversations": two["conversations"],
        "image": "coco/a.jpg",
        "source": "mix",
    }
    assert shards.get(0)["jpg"] == (official / "images" / "coco" / "a.jpg").read_bytes()
    assert shards.meta["counts"] == {"samples": 2, "rejected": 0}
    assert shards.meta["annotations"]["file"] == "mix.json"


def test_the_question_may_be_empty_or_come_before_the_image(official: Path) -> None:
    shards = build(official, [entry("coco/a.jpg", "<image>", "A picture."), entry("coco/a.jpg", "What?\n<image>", "x")])
    assert len(shards) == 2


def test_other_formats_become_jpeg_once_and_are_counted(official: Path) -> None:
    shards = build(official, [entry("coco/b.png"), entry()])
    assert shards.get(0)["jpg"].startswith(b"\xff\xd8\xff")
    assert shards.meta["counts"] == {"samples": 2, "rejected": 0, "converted_from_png": 1}


def test_what_cannot_be_used_is_written_down(official: Path) -> None:
    text_only = {"id": "t", "conversations": turns("Hello", "Hi")}
    shards = build(official, [text_only, entry(), entry("coco/broken.jpg"), entry("coco/none.jpg")])
    assert [shards.key(place) for place in range(len(shards))] == ["llava-00000001"]
    lines = [json.loads(line) for line in (official / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["llava-00000000", "llava-00000002", "llava-00000003"]
    assert lines[0]["reason"] == "no image"
    assert lines[1]["reason"].startswith("image broken.jpg does not decode")
    assert lines[2]["reason"] == "image none.jpg does not exist"
    assert shards.meta["counts"] == {"samples": 1, "rejected": 3}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("text", "entry is str, not an object"),
        ({"id": "a", "conversations": turns("<image>", "x")}, "no image"),
        ({"id": "a", "image": "a.jpg"}, "conversations must be a non-empty list"),
        (entry("a.jpg", "<image>\nWhat?", "That.", "And?"), "in pairs"),
        ({**entry(), "conversations": turns("<image>", "x")[::-1]}, "turn 0 is not from 'human'"),
        ({**entry(), "conversations": [turns("<image>")[0], {"from": "gpt"}]}, "turn 1 has no text"),
        (entry("a.jpg", "What?", "That."), "turn 0 holds <image> 0 times"),
        (entry("a.jpg", "<image><image>", "That."), "turn 0 holds <image> 2 times"),
        (entry("a.jpg", "<image>", "x", "<image>\nAnd?", "y"), "turn 2 holds <image> 1 times"),
        (entry("a.jpg", "<image>", " \n"), "turn 1 is empty"),
    ],
)
def test_faults_of_conversations(given, reason: str) -> None:
    assert reason in str(conversation_fault(given))


def test_a_good_conversation_has_no_fault() -> None:
    assert conversation_fault(entry("a.jpg", "<image>\nWhat?", "That.", "And?", "This.")) is None


def test_missing_files_and_other_layouts_are_named(official: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"conversations file .*mix\.json does not exist"):
        build_llava(config(official))
    (official / "mix.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"mix\.json must hold a list of entries, not dict"):
        build_llava(config(official))
    (official / "mix.json").write_text("[]")
    with pytest.raises(ValueError, match=r"none of the 0 entries .* can be used \(there were none\)"):
        build_llava(config(official))
    assert LlavaConfig(annotations="", images="", out="", per_shard=0).problems() == ["per_shard=0 must be at least 1"]
