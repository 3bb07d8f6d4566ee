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
        ({"options": "Monet, Manet"}, r"the options of question .* must be a list in Python's notation"),
        ({"options": "[]"}, r"the options of question .* must be a list of texts, found '\[\]'"),
        ({"options": "[1, 2]"}, r"must be a list of texts"),
        ({"options": str(["x"] * 10)}, r"Art_Theory_1 of .* has 10 options, expected at most 9: ABCDEFGHI"),
        ({"answer": "C"}, r"has the answer 'C', expected one of the letters AB"),
        ({"answer": "[1]", "question_type": "open"}, r"the answer of question .* must be a list of texts"),
    ],
)
def test_broken_rows(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, [ROW | changes])
    with pytest.raises(ValueError, match=message):
        read_mmmu(tmp_path, split="validation", official=False)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no validation-\*.parquet in or below"):
        read_mmmu(tmp_path, split="validation", official=False)
    write(tmp_path, [ROW, ROW])
    with pytest.raises(ValueError, match=r"holds question Art_Theory/validation_Art_Theory_1 2 times"):
        read_mmmu(tmp_path, split="validation", official=False)
    write(tmp_path, [{key: value for key, value in ROW.items() if key != "options"}])
    with pytest.raises(ValueError, match=r"parquet is missing the columns options; expected id, question"):
        read_mmmu(tmp_path, split="validation", official=False)
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"parquet is not a complete parquet file"):
        read_mmmu(tmp_path, split="validation", official=False)
