import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.benchmarks.gqa import question_id, read_choices, read_gqa

RECORD: dict[str, Any] = {
    "question": "Which room is it?",
    "imageId": "n1",
    "answer": "bedroom",
    "isBalanced": True,
    "types": {"structural": "query", "semantic": "global", "detailed": "place"},
    "groups": {"global": "room", "local": "02q-room"},
    "semantic": [{"operation": "select", "argument": "scene", "dependencies": []}],
}


def write(folder: Path, records: Any) -> Path:
    (folder / "n1.jpg").write_bytes(b"")
    path = folder / "testdev_balanced_questions.json"
    path.write_text(json.dumps(records))
    return path


def test_reads_the_balanced_questions(tmp_path: Path) -> None:
    path = write(tmp_path, {"201": RECORD, "202": RECORD | {"isBalanced": False}, "203": RECORD})
    questions = read_gqa(path, tmp_path, official=False)
    assert [q.sample_id for q in questions] == ["testdev_balanced/201", "testdev_balanced/203"]
    assert questions[0].image == tmp_path / "n1.jpg"
    assert (questions[0].question, questions[0].answer) == ("Which room is it?", "bedroom")
    assert questions[0].meta == RECORD
    [odd] = read_gqa(write(tmp_path, {"a/1": RECORD}), tmp_path, official=False)
    assert question_id(odd.sample_id) == "a/1"
    path = write(tmp_path, {"201": RECORD, "202": RECORD})
    assert len(read_gqa(path, tmp_path, official=False, limit=1)) == 1


def test_official_data_must_be_complete(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"testdev_balanced_questions.json holds 1 balanced questions, expected 12578"):
        read_gqa(write(tmp_path, {"201": RECORD}), tmp_path, official=True)
    whole = {str(i): RECORD for i in range(12_578)}
    assert len(read_gqa(write(tmp_path, whole), tmp_path, official=True)) == 12_578


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([RECORD], r"questions\.json: is \[.*, expected an object"),
        ({"7": {"question": "?"}}, r"questions\.json: 7\.imageId is missing"),
        ({"7": RECORD | {"types": {}}}, r"7\.types\.structural is missing"),
        ({"7": RECORD | {"types": None}}, r"7\.types is null, expected an object"),
        ({"7": RECORD | {"groups": {}}}, r"7\.groups\.global is missing"),
        ({"7": RECORD | {"groups": {"global": 3}}}, r"7\.groups\.global is 3, expected a text"),
        ({"6": RECORD, "7": RECORD | {"answer": None}}, r"7\.answer is null, expected a text"),
        ({"7": RECORD | {"question": ["?"]}}, r"7\.question is \['\?'\], expected a text"),
        ({"7": RECORD | {"question": "a\ud800?"}}, r"7\.question is 'a\\ud800\?', expected valid Unicode"),
        ({"7": RECORD | {"imageId": 7}}, r"7\.imageId is 7, expected a text"),
        ({"7": RECORD | {"isBalanced": 1}}, r"7\.isBalanced is 1, expected true or false"),
        ({"7": RECORD | {"semantic": None}}, r"7\.semantic is null, expected a list"),
        ({"7": RECORD | {"semantic": [{"operation": "select"}]}}, r"7\.semantic\[0\]\.argument is missing"),
        ({"7": RECORD | {"entailed": "8"}}, r"7\.entailed is '8', expected a list"),
        ({"7": RECORD | {"isBalanced": False}}, "holds no balanced question"),
    ],
)
def test_broken_files(tmp_path: Path, records: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_gqa(write(tmp_path, records), tmp_path, official=False)


def test_entailed_questions_follow_from_the_file_of_all(tmp_path: Path) -> None:
    path = write(tmp_path, {"201": RECORD | {"entailed": ["201", "202", "203"]}, "202": RECORD})
    everything = tmp_path / "testdev_all_questions.json"
    everything.write_text(json.dumps(dict.fromkeys(("201", "202", "203", "204"), RECORD)))
    questions = read_gqa(path, tmp_path, official=False, everything=everything)
    assert [q.sample_id for q in questions] == ["testdev_balanced/201", "testdev_balanced/202", "testdev_all/203"]
    # a balanced question that the limit left out is asked for consistency alone
    limited = read_gqa(path, tmp_path, official=False, limit=1, everything=everything)
    assert [(q.sample_id, q.meta["isBalanced"]) for q in limited] == [
        ("testdev_balanced/201", True),
        ("testdev_all/202", False),
        ("testdev_all/203", False),
    ]
    everything.write_text(json.dumps({"202": RECORD}))
    with pytest.raises(
        ValueError, match=r"1 questions that those of .*balanced.* entail are not in .*all.*, first 203"
    ):
        read_gqa(path, tmp_path, official=False, everything=everything)


def test_choices(tmp_path: Path) -> None:
    questions = read_gqa(write(tmp_path, {"201": RECORD}), tmp_path, official=False)
    path = tmp_path / "testdev_choices.json"
    allowed = {"valid": ["bedroom"], "plausible": []}
    path.write_text(json.dumps({"201": allowed, "202": {}}))
    assert read_choices(path, questions) == {"201": allowed}
    path.write_text(json.dumps({"202": allowed}))
    with pytest.raises(
        ValueError, match=r"testdev_choices.json has no choices for 1 of 1 questions, first 201; use both"
    ):
        read_choices(path, questions)
    path.write_text(json.dumps({"201": {"valid": []}}))
    with pytest.raises(ValueError, match=r"testdev_choices\.json: 201\.plausible is missing"):
        read_choices(path, questions)
    path.write_text(json.dumps({"201": {"valid": [None], "plausible": []}}))
    with pytest.raises(ValueError, match=r"201\.valid\[0\] is null, expected a text"):
        read_choices(path, questions)


def test_many_missing_choices_are_counted_and_the_first_named(tmp_path: Path) -> None:
    questions = read_gqa(write(tmp_path, {str(i): RECORD for i in range(1000)}), tmp_path, official=False)
    (tmp_path / "choices.json").write_text(json.dumps({"5": {"valid": [], "plausible": []}}))
    with pytest.raises(ValueError, match=r"has no choices for 999 of 1000 questions, first 0, 1, 2; use both from the"):
        read_choices(tmp_path / "choices.json", questions)


def test_a_question_that_is_there_twice_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = write(tmp_path, {})
    entry = json.dumps(RECORD)
    path.write_text(f'{{"201": {entry}, "202": {entry}, "201": {entry}}}')
    with pytest.raises(ValueError, match=r"is not valid JSON \(the key '201' is there twice\)"):
        read_gqa(path, tmp_path, official=False)
    path.write_text(f'{{"201": {entry}}}', encoding="utf-8-sig")
    assert len(read_gqa(path, tmp_path, official=False)) == 1


def test_files_that_are_missing_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmark file .*none.json does not exist"):
        read_gqa(tmp_path / "none.json", tmp_path, official=False)
    path = write(tmp_path, {"7": RECORD | {"imageId": "n2"}})
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images .* first is .*n2.jpg"):
        read_gqa(path, tmp_path, official=False)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_gqa(path, tmp_path, official=False)
