import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.benchmarks.coco import CaptionSet, Prompt, pictures_in, read_prompts, write_prompts

PROMPT = '{"caption": "a cat", "image_id": 7, "caption_id": null, "image": null}\n'


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
        ([{"id": 1}], None, r"captions\.json: images\[0\]\.file_name is missing"),
        ([{"id": 1, "file_name": 7}], None, r"images\[0\]\.file_name is 7, expected a text"),
        ([{"id": "1", "file_name": "7.jpg"}], None, r"images\[0\]\.id is '1', expected a whole number"),
        ([{"id": 7, "file_name": "7.jpg"}] * 2, None, r"captions\.json holds the image id 7 2 times"),
        (None, [{"id": 1, "caption": "x"}], r"annotations\[0\]\.image_id is missing"),
        (None, [{"id": 1, "image_id": 7, "caption": None}], r"annotations\[0\]\.caption is null, expected a text"),
        (None, [{"id": 1, "image_id": 7, "caption": ["x"]}], r"annotations\[0\]\.caption is \['x'\], expected a text"),
        (None, [{"id": 1, "image_id": 7, "caption": "x"}] * 2, r"captions\.json holds the annotation id 1 2 times"),
        (None, [{"id": 1, "image_id": 55, "caption": "x"}], "annotation 1 of .* is of the unlisted image 55"),
    ],
)
def test_broken_files(tmp_path: Path, images: Any, annotations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionSet.read(write(tmp_path, images, annotations), tmp_path)


def test_another_layout(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(ValueError, match=r"captions\.json: is \[\], expected an object"):
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


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "image_id,text\n7,a cat\n"), ("a.tsv", "Prompt\tn\na cat\t1\n"), ("a.jsonl", PROMPT)],
)
def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert [prompt.caption for prompt in read_prompts(tmp_path / name, 1, None, official=False)] == ["a cat"]


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
        ("a.csv", "text,image_id\na cat\n", "line 2 of .*a.csv: image_id is null, expected a text"),
        ("a.csv", "image_id,text\n1,a cat\n2,\n", "line 3 of .*a.csv: text is '', expected a text that is not empty"),
        ("a.csv", "Prompt\na cat\n", "2 prompts asked for, .*a.csv holds 1; lower n"),
        ("a.csv", f"image_id,text\n{'1' * 13},a cat\n", "line 2 of .*a.csv has the image_id '1{13}'; .* 12 digits"),
        ("a.csv", "image_id,text\n1,a cat, a dog\n", "line 2 of .*a.csv has more cells than there are columns; quote"),
        ("a.csv", "image_id,text,text\n1,a cat,a dog\n", "a.csv holds the column text 2 times"),
        ("a.tsv", "n\tPrompt\n1\n", "line 2 of .*a.tsv: Prompt is null, expected a text"),
        ("a.tsv", f'Prompt\n"{"a" * 200_000}\n', r"a.tsv cannot be read after line 1 \(field larger than .*; fetch"),
        ("a.jsonl", "{\n", "line 1 of .*a.jsonl is not valid JSON"),
        ("a.jsonl", '{"caption": "x"}\n', "line 1 of .*a.jsonl: image_id is missing"),
        ("a.jsonl", PROMPT.replace('"a cat"', "null"), "line 1 of .*a.jsonl: caption is null, expected a text"),
        ("a.jsonl", PROMPT.replace('"a cat"', '"\\ud800"'), r"caption is '\\ud800', expected valid Unicode"),
        ("a.jsonl", PROMPT.replace("7,", "true,"), "line 1 of .*a.jsonl: image_id is true, expected a whole number"),
        ("a.jsonl", PROMPT.replace("null}", "3}"), "line 1 of .*a.jsonl: image is 3, expected a text"),
        ("a.jsonl", PROMPT.replace("}", ', "caption": "b"}'), "the key 'caption' is there twice"),
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
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.webp").write_bytes(b"")
    (tmp_path / "part" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "part" / "back").symlink_to(tmp_path / "part")
    (tmp_path / "part" / "._c.jpeg").write_bytes(b"")
    names = ["a.png", "b.JPG", "elsewhere/d.webp", "part/c.jpeg"]
    assert [path.relative_to(tmp_path).as_posix() for path in pictures_in(tmp_path, official=False)] == names
    assert [path.name for path in pictures_in(tmp_path / "part", official=False)] == ["c.jpeg", "d.webp"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds 0 pictures, expected .jpg"):
        pictures_in(tmp_path / "empty", official=False)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        pictures_in(tmp_path / "nowhere", official=False)
