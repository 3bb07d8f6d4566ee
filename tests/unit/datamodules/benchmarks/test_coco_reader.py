import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.benchmarks.coco import CaptionSet, Prompt, pictures_in, read_prompts, write_prompts


def write(folder: Path, images: Any = None, annotations: Any = None) -> Path:
    # in no order, as in the official file
    order = [7, 2, 9, 4, 0]
    images = images or [{"id": i, "file_name": f"{i}.jpg"} for i in order]
    annotations = annotations or [
        {"id": 100 - 10 * i - j, "image_id": i, "caption": f" caption {j}\nof {i} \n"} for i in order for j in range(5)
    ]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    for i in order:
        (folder / f"{i}.jpg").write_bytes(b"")
    return path


def test_choice_is_one_caption_each_of_different_pictures(tmp_path: Path) -> None:
    pairs = CaptionSet.read(write(tmp_path), tmp_path).choose(5, seed=0)
    assert sorted(pair.image_id for pair in pairs) == [0, 2, 4, 7, 9]
    for pair in pairs:
        number = 100 - 10 * pair.image_id - pair.caption_id
        assert pair.caption == f"caption {number} of {pair.image_id}"  # white space as in the training data
        assert pair.image == tmp_path / f"{pair.image_id}.jpg"


def test_choice_depends_on_the_seed_and_not_on_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    chosen = CaptionSet.read(path, tmp_path).choose(3, seed=1)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({key: value[::-1] for key, value in document.items()}))
    assert CaptionSet.read(path, tmp_path).choose(3, seed=1) == chosen
    assert any(CaptionSet.read(path, tmp_path).choose(3, seed=seed) != chosen for seed in range(2, 6))


def test_all_images_are_in_order_of_id(tmp_path: Path) -> None:
    assert [path.stem for path in CaptionSet.read(write(tmp_path), tmp_path).all_images()] == ["0", "2", "4", "7", "9"]


def test_errors(tmp_path: Path) -> None:
    captions = CaptionSet.read(write(tmp_path), tmp_path)
    with pytest.raises(ValueError, match=r"6 pictures asked for, .*captions.json has captions of 5; lower n"):
        captions.choose(6, seed=0)
    (tmp_path / "4.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 images .* first is .*4.jpg"):
        captions.all_images()
    with pytest.raises(FileNotFoundError, match=r"4.jpg"):
        captions.choose(5, seed=0)


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([{"id": 1}], None, "image 0 of .* is missing file_name"),
        (None, [{"id": 1, "caption": "x"}], "annotation 0 of .* is missing image_id"),
        (None, [{"id": 1, "image_id": 55, "caption": "x"}], "annotation 1 of .* is of the unlisted image 55"),
    ],
)
def test_broken_files(tmp_path: Path, images: Any, annotations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionSet.read(write(tmp_path, images, annotations), tmp_path)


def test_another_layout(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(ValueError, match=r"captions.json must be a JSON object, found list"):
        CaptionSet.read(tmp_path / "captions.json", tmp_path)


def test_official_captions_list_all_of_val2014(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(ValueError, match=r"captions.json lists 5 images, expected 40504. If this is not the official"):
        CaptionSet.read(path, tmp_path).require_official()
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(40_504)]
    CaptionSet.read(write(tmp_path, images=images), tmp_path).require_official()


def test_published_tables_of_prompts(tmp_path: Path) -> None:
    with_ids, without = tmp_path / "with_ids.csv", tmp_path / "without.csv"
    with_ids.write_text('image_id,text\n42,"A man, a dog\nand  a hat."\n7,Two birds\n')
    without.write_text("Prompt\nA man, a dog\nTwo birds\n")
    (tmp_path / "COCO_val2014_000000000042.jpg").write_bytes(b"")
    assert read_prompts(with_ids, 1, tmp_path, official=False) == [
        Prompt(caption="A man, a dog and a hat.", image_id=42, image=tmp_path / "COCO_val2014_000000000042.jpg")
    ]
    assert read_prompts(with_ids, 2, None, official=False)[1] == Prompt(caption="Two birds", image_id=7)
    expected = [Prompt(caption="A man, a dog"), Prompt(caption="Two birds")]
    assert read_prompts(without, 2, None, official=False) == expected
    without.write_text("index\tPrompt\n0\tA man, a dog\n1\tTwo birds\n")
    assert read_prompts(without, 2, None, official=False) == expected


def test_official_tables_hold_30000_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("Prompt\n" + "a cat\n" * 30_000)
    assert len(read_prompts(path, 5000, None, official=True)) == 5000
    path.write_text("Prompt\n" + "a cat\n" * 29_999)
    with pytest.raises(
        ValueError, match=r"prompts.csv holds 29999 prompts, expected 30000. If this is not the official"
    ):
        read_prompts(path, 5000, None, official=True)


def test_a_choice_that_was_written_is_read_again(tmp_path: Path) -> None:
    pairs = CaptionSet.read(write(tmp_path), tmp_path).choose(3, seed=1)
    write_prompts(tmp_path / "prompts.jsonl", pairs)
    found = read_prompts(tmp_path / "prompts.jsonl", 3, tmp_path, official=True)
    assert [(p.caption, p.image_id, p.caption_id, p.image) for p in found] == [
        (p.caption, p.image_id, p.caption_id, p.image) for p in pairs
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,caption\n1,x\n", "a.csv has the columns id, caption; expected image_id,text or Prompt"),
        ("a.csv", "", "a.csv has the columns ; expected"),
        ("a.csv", "image_id,text\nx1,a cat\n", "line 2 of .*a.csv has the image_id 'x1'; expected a number"),
        ("a.csv", "text,image_id\na cat\n", "line 2 of .*a.csv has the image_id None; expected a number"),
        ("a.csv", "image_id,text\n1,a cat\n2,\n", "row 2 of .*a.csv holds no prompt"),
        ("a.csv", "Prompt\na cat\n", "2 prompts asked for, .*a.csv holds 1; lower n"),
        ("a.jsonl", "{\n", "line 1 of .*a.jsonl is not valid JSON"),
        ("a.jsonl", '{"caption": "x"}\n', "line 1 of .*a.jsonl is missing image_id, caption_id, image"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name, 2, None, official=False)


def test_a_table_or_its_picture_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmark file .*nowhere.csv does not exist"):
        read_prompts(tmp_path / "nowhere.csv", 1, None, official=False)
    (tmp_path / "a.csv").write_text("image_id,text\n1,a cat\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images .*a.csv names do not exist.*COCO_val2014_000000000001"):
        read_prompts(tmp_path / "a.csv", 1, tmp_path, official=False)


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    for name in ("b.JPG", "a.png", "part/c.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = pictures_in(tmp_path, official=False)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.png", "b.JPG", "part/c.jpeg"]
    with pytest.raises(ValueError, match=r"holds 3 pictures, expected 40504. If this is not the official"):
        pictures_in(tmp_path, official=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds 0 pictures, expected .jpg"):
        pictures_in(tmp_path / "empty", official=False)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        pictures_in(tmp_path / "nowhere", official=False)
