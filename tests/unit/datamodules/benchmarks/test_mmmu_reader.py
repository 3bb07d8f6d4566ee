from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from datamodules.benchmarks.mmmu import mmmu_files, read_mmmu
from datamodules.images import StoredImage
from modules.metrics.mmmu import SUBJECTS

PICTURE = {"bytes": b"picture", "path": "a.png"}
ROW = {
    "id": "validation_Art_Theory_1",
    "question": "Who painted <image 1>?",
    "options": "['Monet', \"Manet's\"]",
    "answer": "B",
    "question_type": "multiple-choice",
    "image_1": PICTURE,
    "image_2": None,
}
OPEN = ROW | {"id": "validation_Math_1", "options": "[]", "answer": "['24/7', '3.429']", "question_type": "open"}


def write(folder: Path, rows: Sequence[dict[str, Any]], name: str = "validation-00000-of-00001.parquet") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    fields = [(key, image if key.startswith("image_") else pa.string()) for key in rows[0]]
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=pa.schema(fields)), folder / name)


def test_reads_choices_and_open_questions_of_all_subjects(tmp_path: Path) -> None:
    write(tmp_path / "Art_Theory", [ROW])
    write(tmp_path / "Math", [OPEN])
    choice, free = read_mmmu(tmp_path, split="validation", official=False)
    assert (choice.benchmark, choice.split, choice.sample_id) == (
        "mmmu",
        "Art_Theory",
        "Art_Theory/validation_Art_Theory_1",
    )
    assert (choice.question, choice.answer) == ("Who painted <image 1>?", "B")
    assert choice.meta == {
        "id": "validation_Art_Theory_1",
        "options": ("Monet", "Manet's"),
        "golds": ("B",),
        "images": 1,
    }
    assert isinstance(choice.image, StoredImage)
    assert (choice.image.name, choice.image.payload) == ("a.png", b"picture")
    assert (free.meta["options"], free.meta["golds"]) == ((), ("24/7", "3.429"))
    assert len(mmmu_files(tmp_path, "validation")) == 2


def test_one_merged_file_with_both_splits_beside_each_other(tmp_path: Path) -> None:
    write(tmp_path / "data", [ROW, OPEN])
    write(tmp_path / "data", [ROW | {"id": "dev_Art_1"}], "dev-00000-of-00001.parquet")
    assert [q.split for q in read_mmmu(tmp_path, split="validation", official=False)] == ["Art_Theory", "Math"]
    assert [q.split for q in read_mmmu(tmp_path, split="dev", official=False)] == ["Art"]


def test_the_first_of_several_pictures_is_taken(tmp_path: Path) -> None:
    write(tmp_path, [ROW | {"image_2": {"bytes": b"second", "path": None}}])
    [question] = read_mmmu(tmp_path, split="validation", official=False)
    assert isinstance(question.image, StoredImage)
    assert question.image.payload == b"picture"
    assert question.meta["images"] == 2


def test_official_data_must_be_complete(tmp_path: Path) -> None:
    for subject in SUBJECTS:
        rows = [ROW | {"id": f"validation_{subject}_{number}"} for number in range(30)]
        write(tmp_path / subject, rows)
    questions = read_mmmu(tmp_path, split="validation", official=True)
    assert len(questions) == 900
    assert len(read_mmmu(tmp_path, split="validation", official=True, limit=2)) == 60
    write(tmp_path / "Math", rows[:3])
    expected = r"validation files below .* hold 0 questions of Math, expected 30 of each of 30 subjects\..*scenes"
    with pytest.raises(ValueError, match=expected):
        read_mmmu(tmp_path, split="validation", official=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "validation_Cooking_1"}, r"validation_Cooking_1 of .*parquet has no known subject"),
        ({"image_1": None}, r"question validation_Art_Theory_1 of .* has no image_1"),
        ({"question": None}, r"row 0 of .*parquet: question is null, expected a text"),
        ({"question": ""}, r"row 0 of .*parquet: question is '', expected a text that is not empty"),
        ({"answer": None}, r"row 0 of .*parquet: answer is null, expected a text"),
        ({"id": None}, r"row 0 of .*parquet: id is null, expected a text"),
        ({"question_type": None}, r"row 0 of .*parquet: question_type is null, expected a text"),
        ({"options": None}, r"row 0 of .*parquet: options is null, expected a text"),
        ({"image_1": {"bytes": None, "path": "a.png"}}, r"question validation_Art_Theory_1 of .* has no image_1"),
        ({"options": "[" * 200}, r"the options of question .* must be a list in Python's notation"),
        ({"options": r"['a', '\ud800']"}, r"the options of question .*: \[1\] is '.ud800', expected valid Unicode"),
        ({"options": "Monet, Manet"}, r"the options of question .* must be a list in Python's notation"),
        ({"options": "[]"}, r"the options of question .* must be a list of texts, found '\[\]'"),
        ({"options": "[1, 2]"}, r"the options of question .*: \[0\] is 1, expected a text"),
        ({"options": "'A'"}, r"the options of question .*: is 'A', expected a list"),
        ({"options": str(["x"] * 10)}, r"Art_Theory_1 of .* has 10 options, expected at most 9: ABCDEFGHI"),
        ({"answer": "C"}, r"has the answer 'C', expected one of the letters AB"),
        ({"answer": "[1]", "question_type": "open"}, r"the answer of question .*: \[0\] is 1, expected a text"),
    ],
)
def test_broken_rows(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, [ROW | changes])
    with pytest.raises(ValueError, match=message):
        read_mmmu(tmp_path, split="validation", official=False)


@pytest.mark.parametrize(
    ("key", "kind", "value", "message"),
    [
        ("question", pa.binary(), b"Who?", r"row 0 of .*parquet: question is 4 bytes, expected a text"),
        ("answer", pa.list_(pa.string()), ["B"], r"row 0 of .*parquet: answer is \['B'\], expected a text"),
        ("answer", pa.int64(), 1, r"row 0 of .*parquet: answer is 1, expected a text"),
        ("options", pa.list_(pa.string()), ["a", "b"], r"row 0 of .*: options is \['a', 'b'\], expected a text"),
        ("image_1", pa.binary(), b"picture", r"question .* of .*parquet: image_1 is 7 bytes, expected an object"),
        ("image_2", pa.string(), "a.png", r"question .* of .*parquet: image_2 is 'a.png', expected an object"),
        ("image_1", pa.struct({"bytes": pa.string()}), {"bytes": "x"}, r": image_1\.bytes is 'x', expected bytes"),
    ],
)
def test_columns_of_another_type(tmp_path: Path, key: str, kind: pa.DataType, value: object, message: str) -> None:
    write(tmp_path, [ROW])
    [path] = mmmu_files(tmp_path, "validation")
    table = parquet.read_table(path)
    parquet.write_table(table.set_column(table.column_names.index(key), key, pa.array([value], kind)), path)
    with pytest.raises(ValueError, match=message):
        read_mmmu(tmp_path, split="validation", official=False)


def test_linked_folders_are_read_and_files_of_macos_are_not(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "Math", [OPEN])
    write(tmp_path / "here" / "Art_Theory", [ROW])
    (tmp_path / "here" / "Math").symlink_to(tmp_path / "elsewhere" / "Math")
    (tmp_path / "here" / "again").symlink_to(tmp_path / "here")
    write(tmp_path / "here" / "__MACOSX", [ROW])
    (tmp_path / "here" / "Art_Theory" / "._validation-00000-of-00001.parquet").write_bytes(b"\x00\x05\x16\x07")
    assert [q.split for q in read_mmmu(tmp_path / "here", split="validation", official=False)] == ["Art_Theory", "Math"]


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no validation-\*.parquet in or below"):
        read_mmmu(tmp_path, split="validation", official=False)
    write(tmp_path, [ROW, ROW])
    with pytest.raises(ValueError, match=r"holds question Art_Theory/validation_Art_Theory_1 2 times"):
        read_mmmu(tmp_path, split="validation", official=False)
    write(tmp_path, [{key: value for key, value in ROW.items() if key != "options"}])
    with pytest.raises(ValueError, match=r"parquet is missing the columns options; expected id, question"):
        read_mmmu(tmp_path, split="validation", official=False)
    write(tmp_path, [ROW])
    table = parquet.read_table(tmp_path / "validation-00000-of-00001.parquet")
    twice = table.append_column("answer", table["answer"])
    parquet.write_table(twice, tmp_path / "validation-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"parquet holds the column answer 2 times"):
        read_mmmu(tmp_path, split="validation", official=False)
    (tmp_path / "validation-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"parquet is a git-lfs pointer"):
        read_mmmu(tmp_path, split="validation", official=False)
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"parquet is not a complete parquet file"):
        read_mmmu(tmp_path, split="validation", official=False)
