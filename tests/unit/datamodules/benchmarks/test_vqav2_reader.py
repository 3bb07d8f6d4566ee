import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.benchmarks import vqav2
from datamodules.benchmarks.questions import Question
from datamodules.benchmarks.vqav2 import Split, question_ids, read_vqav2

SKATER = ["down", "down", "at table", "skateboard", "down", "table", "down", "down", "down", "down"]
QUESTION = {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}
ANNOTATION = {
    "question_type": "none of the above",
    "multiple_choice_answer": "down",
    "answers": [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(SKATER, start=1)
    ],
    "image_id": 262148,
    "answer_type": "other",
    "question_id": 262148000,
}


def write(folder: Path, name: str, split: str, records: list[Any]) -> Path:
    (folder / "COCO_val2014_000000262148.jpg").write_bytes(b"")
    (folder / "COCO_test2015_000000262148.jpg").write_bytes(b"")
    path = folder / f"{split}_{name}.json"
    path.write_text(json.dumps({"info": {}, "data_type": "mscoco", "data_subtype": split, name: records}))
    return path


def numbered(record: dict[str, Any], count: int) -> list[dict[str, Any]]:
    return [record | {"question_id": number} for number in range(count)]


def read_val(folder: Path, questions: list[Any], annotations: list[Any], limit: int | None = None) -> list[Question]:
    return read_vqav2(
        write(folder, "questions", "val2014", questions),
        write(folder, "annotations", "val2014", annotations),
        folder,
        split="val2014",
        official=False,
        limit=limit,
    )


def test_reads_questions_with_their_annotations(tmp_path: Path) -> None:
    [question] = read_val(tmp_path, [QUESTION], [ANNOTATION])
    assert (question.benchmark, question.split, question.sample_id) == ("vqav2", "val2014", "val2014/262148000")
    assert question.image == tmp_path / "COCO_val2014_000000262148.jpg"
    assert (question.question, question.answer) == ("Where is he looking?", "down")
    assert question.meta == {
        "question_id": 262148000,
        "answers": tuple(SKATER),
        "answer_type": "other",
        "question_type": "none of the above",
    }


@pytest.mark.parametrize("split", ["test2015", "test-dev2015"])
def test_tests_have_no_annotations(tmp_path: Path, split: Split) -> None:
    path = write(tmp_path, "questions", split, [QUESTION])
    [question] = read_vqav2(path, None, tmp_path, split=split, official=False)
    assert question.sample_id == f"{split}/262148000"
    assert question.image == tmp_path / "COCO_test2015_000000262148.jpg"
    assert (question.answer, question.meta) == ("", {"question_id": 262148000})
    assert question_ids(path, split=split, official=False) == [262148000]


def test_a_smaller_part_lies_in_a_larger(tmp_path: Path) -> None:
    questions, annotations = numbered(QUESTION, 100), numbered(ANNOTATION, 100)
    parts = [
        [question.sample_id for question in read_val(tmp_path, questions[::order], annotations, limit)]
        for limit, order in ((10, 1), (30, -1))
    ]
    assert parts[1][:10] == parts[0]
    assert len(set(parts[1])) == 30
    assert parts[0] != [f"val2014/{number}" for number in range(10)]


def test_official_counts() -> None:
    assert vqav2.OFFICIAL_COUNTS == {"val2014": 214_354, "test-dev2015": 107_394, "test2015": 447_793}


@pytest.mark.parametrize("split", ["val2014", "test-dev2015", "test2015"])
def test_official_data_must_be_complete(tmp_path: Path, split: Split) -> None:
    path = write(tmp_path, "questions", split, [QUESTION])
    expected = rf"questions.json holds 1 questions, expected {vqav2.OFFICIAL_COUNTS[split]}\..*scenes"
    with pytest.raises(ValueError, match=expected):
        read_vqav2(path, None, tmp_path, split=split, official=True)
    with pytest.raises(ValueError, match=expected):
        question_ids(path, split=split, official=True)


def test_whole_official_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vqav2.OFFICIAL_COUNTS, "val2014", 2)
    read = [write(tmp_path, "questions", "val2014", numbered(QUESTION, 2))]
    read += [write(tmp_path, "annotations", "val2014", numbered(ANNOTATION, 2))]
    assert len(read_vqav2(*read, tmp_path, split="val2014", official=True)) == 2


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        (
            numbered(QUESTION, 3),
            numbered(ANNOTATION, 2),
            r"annotations.json annotates 2 questions, .*questions.json asks 3; 1 are in only one of them, first 2",
        ),
        (
            [QUESTION],
            [ANNOTATION | {"image_id": 7}],
            r"262148000 is on image 262148 in .*questions.json, on 7 in .*ann",
        ),
        (
            [QUESTION],
            [ANNOTATION | {"answers": ANNOTATION["answers"][:9]}],
            r"annotations\[0\]\.answers is .*, expected at least 10 of them, not 9",
        ),  # type: ignore[index]
        ([QUESTION, QUESTION], [ANNOTATION], r"questions.json holds question_id 262148000 2 times; each must be"),
        ([QUESTION | {"question_id": "7"}], [ANNOTATION], r"questions\[0\]\.question_id is '7', expected a whole"),
        ([{"question_id": 1}], [ANNOTATION], r"questions\.json: questions\[0\]\.image_id is missing"),
        ([QUESTION | {"image_id": "7"}], [ANNOTATION], r"questions\[0\]\.image_id is '7', expected a whole number"),
        ([QUESTION | {"image_id": -7}], [ANNOTATION], r"questions\[0\]\.image_id is -7, expected at least 0"),
        ([QUESTION | {"question": None}], [ANNOTATION], r"questions\[0\]\.question is null, expected a text"),
        ([QUESTION | {"question": ["?"]}], [ANNOTATION], r"questions\[0\]\.question is \['\?'\], expected a text"),
        ([QUESTION | {"question": "\udc00"}], [ANNOTATION], r"question is '.udc00', expected valid Unicode"),
        (
            [QUESTION],
            [ANNOTATION | {"multiple_choice_answer": None}],
            r"multiple_choice_answer is null, expected a text",
        ),
        ([QUESTION], [ANNOTATION | {"question_type": 1}], r"annotations\[0\]\.question_type is 1, expected a text"),
        ([QUESTION], [ANNOTATION | {"answers": None}], r"annotations\[0\]\.answers is null, expected a list"),
        (
            [QUESTION],
            [ANNOTATION | {"answers": [*ANNOTATION["answers"][:9], {"answer": 2}]}],  # type: ignore[index]
            r"annotations.json: annotations\[0\]\.answers\[9\]\.answer is 2, expected a text",
        ),
        ([QUESTION], [ANNOTATION | {"answers": [{}] * 10}], r"annotations\[0\]\.answers\[0\]\.answer is missing"),
        ([QUESTION], [ANNOTATION | {"answer_type": "x"}], r"answer_type is 'x', expected 'yes/no', 'number' or"),
        ([QUESTION], [QUESTION], r"annotations\.json: annotations\[0\]\.answers is missing"),
        ([], [], r"questions.json: questions is \[\], expected at least 1 of them, not 0"),
    ],
)
def test_broken_files(tmp_path: Path, questions: list[Any], annotations: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_val(tmp_path, questions, annotations)


def test_a_key_that_is_there_twice_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = write(tmp_path, "questions", "test2015", [QUESTION])
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert question_ids(path, split="test2015", official=False) == [262148000]
    path.write_text(text.replace('"image_id"', '"question": "Who?", "image_id"'))
    with pytest.raises(ValueError, match=r"is not valid JSON \(the key 'question' is there twice\)"):
        question_ids(path, split="test2015", official=False)


def test_files_that_are_missing_or_of_another_split(tmp_path: Path) -> None:
    path = write(tmp_path, "questions", "test2015", [QUESTION])
    with pytest.raises(ValueError, match=r"is of 'test2015', expected 'val2014'"):
        read_vqav2(path, None, tmp_path, split="val2014", official=False)
    with pytest.raises(FileNotFoundError, match=r"benchmark file .*none.json does not exist"):
        read_vqav2(path, tmp_path / "none.json", tmp_path, split="test2015", official=False)
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images .* first is .*COCO_test2015_000000262148.jpg"):
        read_vqav2(path, None, tmp_path / "elsewhere", split="test2015", official=False)
