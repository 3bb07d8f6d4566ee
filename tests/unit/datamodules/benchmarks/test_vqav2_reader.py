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
        ([QUESTION], [ANNOTATION | {"answers": ANNOTATION["answers"][:9]}], r"has 9 answers in .*, expected 10"),  # type: ignore[index]
        ([QUESTION, QUESTION], [ANNOTATION], r"entry 1 of questions in .* question_id 262148000; .* unique"),
        ([QUESTION | {"question_id": "7"}], [ANNOTATION], r"has the question_id '7'; ids must be whole numbers"),
        ([{"question_id": 1}], [ANNOTATION], r"entry 0 of questions in .* is missing image_id, question"),
        ([QUESTION | {"image_id": "7"}], [ANNOTATION], r"entry 0 of questions in .* has the image_id '7'; .* whole"),
        ([QUESTION], [ANNOTATION | {"answers": [{}] * 10}], r"an answer to question 262148000 in .* is missing answer"),
        ([QUESTION], [ANNOTATION | {"answer_type": "x"}], r"answer_type 'x' in .*, expected one of yes/no, number"),
        ([QUESTION], [QUESTION], r"entry 0 of annotations in .* is missing answers, answer_type"),
        ([], [], r"questions.json holds no questions"),
    ],
)
def test_broken_files(tmp_path: Path, questions: list[Any], annotations: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_val(tmp_path, questions, annotations)


def test_files_that_are_missing_or_of_another_split(tmp_path: Path) -> None:
    path = write(tmp_path, "questions", "test2015", [QUESTION])
    with pytest.raises(ValueError, match=r"is of 'test2015', expected 'val2014'"):
        read_vqav2(path, None, tmp_path, split="val2014", official=False)
    with pytest.raises(FileNotFoundError, match=r"benchmark file .*none.json does not exist"):
        read_vqav2(path, tmp_path / "none.json", tmp_path, split="test2015", official=False)
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images .* first is .*COCO_test2015_000000262148.jpg"):
        read_vqav2(path, None, tmp_path / "elsewhere", split="test2015", official=False)
