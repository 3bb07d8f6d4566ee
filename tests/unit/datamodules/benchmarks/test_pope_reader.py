import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datamodules.benchmarks.pope import read_pope

LINE = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}


def lines(count: int) -> list[dict[str, Any]]:
    return [LINE | {"question_id": i + 1, "label": "yes" if i < 1500 else "no"} for i in range(count)]


def write(folder: Path, **splits: Sequence[Any]) -> None:
    (folder / "a.jpg").write_bytes(b"")
    for split in ("random", "popular", "adversarial"):
        content = "".join(f"{json.dumps(line)}\n" for line in splits.get(split, lines(2)))
        (folder / f"coco_pope_{split}.json").write_text(content)


def test_reads_the_three_files(tmp_path: Path) -> None:
    write(tmp_path)
    questions = read_pope(tmp_path, tmp_path, official=False)
    assert [q.sample_id for q in questions] == [
        f"{split}/{number}" for split in ("random", "popular", "adversarial") for number in (1, 2)
    ]
    first = questions[0]
    assert (first.benchmark, first.split, first.question, first.answer) == ("pope", "random", LINE["text"], "yes")
    assert first.image == tmp_path / "a.jpg"


@pytest.mark.parametrize("count", [3000, 2910])
def test_both_official_versions_of_random(tmp_path: Path, count: int) -> None:
    write(tmp_path, random=lines(count), popular=lines(3000), adversarial=lines(3000))
    assert len(read_pope(tmp_path, tmp_path, official=True)) == count + 6000


def test_limit_is_per_split_and_after_the_count(tmp_path: Path) -> None:
    write(tmp_path, random=lines(3000), popular=lines(3000), adversarial=lines(3000))
    assert [q.sample_id for q in read_pope(tmp_path, tmp_path, official=True, limit=1)] == [
        "random/1",
        "popular/1",
        "adversarial/1",
    ]


def test_official_data_must_be_complete(tmp_path: Path) -> None:
    write(tmp_path, random=lines(2999))
    with pytest.raises(ValueError, match=r"coco_pope_random.json holds 2999 questions, expected 3000 or 2910.*scenes"):
        read_pope(tmp_path, tmp_path, official=True)
    write(tmp_path, random=lines(2910), popular=lines(2910))
    with pytest.raises(ValueError, match=r"coco_pope_popular.json holds 2910 questions, expected 3000\."):
        read_pope(tmp_path, tmp_path, official=True)
    write(tmp_path, random=lines(3000)[:-1] + lines(1))
    with pytest.raises(ValueError, match=r"repeats question random/1"):
        read_pope(tmp_path, tmp_path, official=True)
    write(tmp_path, random=[line | {"label": "no"} for line in lines(3000)])
    with pytest.raises(ValueError, match=r"random.json holds 0 questions with the label yes, expected 1500\..*scenes"):
        read_pope(tmp_path, tmp_path, official=True)


def test_missing_question_file(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "coco_pope_popular.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"benchmark file .*coco_pope_popular.json does not exist"):
        read_pope(tmp_path, tmp_path, official=False)


def test_missing_image(tmp_path: Path) -> None:
    write(tmp_path, random=[LINE, LINE | {"question_id": 2, "image": "b.jpg"}])
    with pytest.raises(
        FileNotFoundError, match=r"1 of 2 images that .*coco_pope_random.json names .* first is .*b.jpg"
    ):
        read_pope(tmp_path, tmp_path, official=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE | {"label": "Yes"}, r"line 2 of .*random.json: label is 'Yes', expected 'yes' or 'no'"),
        (LINE | {"label": None}, r"line 2 of .*random.json: label is null, expected 'yes' or 'no'"),
        (LINE | {"label": ["yes"]}, r"line 2 of .*random.json: label is \['yes'\], expected 'yes' or 'no'"),
        (LINE | {"text": None}, r"line 2 of .*random.json: text is null, expected a text"),
        (LINE | {"text": ""}, r"line 2 of .*random.json: text is '', expected a text that is not empty"),
        (LINE | {"text": "Is \ud83d?"}, r"line 2 of .*random.json: text is 'Is .ud83d\?', expected valid Unicode"),
        (LINE | {"image": 310196}, r"line 2 of .*random.json: image is 310196, expected a text"),
        (LINE | {"question_id": [2]}, r"line 2 of .*random.json: question_id is \[2\], expected a whole number"),
        (LINE | {"question_id": True}, r"line 2 of .*random.json: question_id is true, expected a whole number"),
        ({"question_id": 2, "text": "?"}, r"line 2 of .*random.json: image is missing"),
        ([1], r"line 2 of .*random.json: is \[1\], expected an object"),
        (LINE, r"line 2 of .*random.json repeats question random/1"),
    ],
)
def test_broken_lines(tmp_path: Path, line: Any, message: str) -> None:
    write(tmp_path, random=[LINE, line])
    with pytest.raises(ValueError, match=message):
        read_pope(tmp_path, tmp_path, official=False)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    text = json.dumps(LINE).replace("}", ', "label": "no"}')
    (tmp_path / "coco_pope_random.json").write_text(text)
    with pytest.raises(ValueError, match=r"line 1 of .*random.json is not valid JSON \(the key 'label' is there twice"):
        read_pope(tmp_path, tmp_path, official=False)


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "coco_pope_random.json").write_text('{"question_id": 1,\n')
    with pytest.raises(ValueError, match=r"line 1 of .*random.json is not valid JSON"):
        read_pope(tmp_path, tmp_path, official=False)


def test_lines_end_at_line_ends_alone(tmp_path: Path) -> None:
    """As JSON Lines has it: a question may hold other signs that part lines elsewhere, and a file a mark in front."""
    odd = LINE | {"text": "Is there a\u2028dog\x85in the image? 犬"}
    write(tmp_path)
    (tmp_path / "coco_pope_random.json").write_bytes(
        b"\xef\xbb\xbf" + f"{json.dumps(odd, ensure_ascii=False)}\r\n\r\n".encode()
    )
    assert read_pope(tmp_path, tmp_path, official=False)[0].question == odd["text"]
    (tmp_path / "coco_pope_random.json").write_bytes(json.dumps(LINE).encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"coco_pope_random.json is not UTF-8 \(.*; fetch it again"):
        read_pope(tmp_path, tmp_path, official=False)


def test_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path, random=[])
    with pytest.raises(ValueError, match=r"random.json holds no question"):
        read_pope(tmp_path, tmp_path, official=False)
