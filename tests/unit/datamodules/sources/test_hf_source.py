import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from datamodules.shards.reader import ShardSet
from tests.unit.datamodules.sources.conftest import encoded, halves

# before the library is imported, which reads it then; the cache must not be the user's
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from datamodules.sources.hf import HfConfig, build_hf

PICTURE = encoded(halves(), "JPEG", quality=95)
TALK = [{"from": "human", "value": "<image>\nWas? 犬"}, {"from": "gpt", "value": "Grün."}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(count: int = 4, kind=None, **columns) -> Dataset:
    pictures = [{"bytes": PICTURE, "path": f"folder/{n}.jpg"} for n in range(count)]
    given = {
        "image": pictures,
        "caption": [f"Bild {n}" for n in range(count)],
        "captions": [[f"one {n}", "", "zwei 犬"] for n in range(count)],
        "conversations": [TALK] * count,
        "question": ["What is it?"] * count,
        "answer": ["Grey."] * count,
        **columns,
    }
    turn = {"from": Value("string"), "value": Value("string")}
    kinds = {"image": kind or Image(), "captions": List(Value("string")), "conversations": List(turn)}
    return Dataset.from_dict(given, features=Features({key: kinds.get(key, Value("string")) for key in given}))


def saved(dataset: Dataset | DatasetDict, tmp_path: Path) -> str:
    dataset.save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def config(dataset: str, tmp_path: Path, **values) -> HfConfig:
    return HfConfig(**{"dataset": dataset, "out": str(tmp_path / "out"), "processes": 1, "name": "mine", **values})


def contents(shards: ShardSet) -> list[dict]:
    return [json.loads(shards.get(place)["json"]) for place in range(len(shards))]


def reasons(tmp_path: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("column", "captions"), [("caption", ["Bild 2"]), ("captions", ["one 2", "zwei 犬"])], ids=["text", "list"]
)
def test_captions_become_t2i_shards(tmp_path: Path, vq: Path, column: str, captions: list[str]) -> None:
    given = config(saved(rows(), tmp_path), tmp_path, caption_column=column, vq=str(vq))
    shards = ShardSet.open(build_hf(given))
    assert [shards.key(place) for place in (0, 3)] == ["mine-00000000", "mine-00000003"]
    assert contents(shards)[2] == {"captions": captions, "row": 2}
    assert np.frombuffer(shards.get(2)["vq"], "<u2").tolist() == [1, 3, 1, 3]
    assert shards.meta["dataset"] == {"name": "saved", "config": "", "split": "train"}
    assert shards.meta["columns"] == ["image", column]
    assert shards.meta["vq"]["codebook_size"] == 5


def test_conversations_become_mmu_shards_with_the_original_bytes(tmp_path: Path) -> None:
    given = config(saved(rows(), tmp_path), tmp_path, conversations_column="conversations")
    shards = ShardSet.open(build_hf(given))
    assert contents(shards)[1] == {"id": "1", "conversations": TALK, "image": "1.jpg", "source": "mine"}
    assert {shards.get(place)["jpg"] for place in range(4)} == {PICTURE}


def test_questions_and_answers_become_mmu_shards(tmp_path: Path) -> None:
    answers = ["Grey.", "", "Grey.", None]
    questions = ["What?", "What?", "In <image>: what?", "What?"]
    dataset = saved(rows(answer=answers, question=questions), tmp_path)
    shards = ShardSet.open(build_hf(config(dataset, tmp_path, question_column="question", answer_column="answer")))
    assert [content["conversations"][0]["value"] for content in contents(shards)] == [
        "<image>\nWhat?",
        "In <image>: what?",
    ]
    assert reasons(tmp_path) == ["turn 1 is empty", "answer is not a text: NoneType"]


def test_turns_stored_column_by_column_are_understood(tmp_path: Path) -> None:
    talk = {key: [turn[key] for turn in TALK] for key in ("from", "value")}
    kinds = {"image": Image(), "talk": {"from": List(Value("string")), "value": List(Value("string"))}}
    dataset = Dataset.from_dict({"image": [{"bytes": PICTURE, "path": None}], "talk": [talk]}, features=Features(kinds))
    shards = ShardSet.open(build_hf(config(saved(dataset, tmp_path), tmp_path, conversations_column="talk")))
    assert contents(shards)[0]["conversations"] == TALK
    assert contents(shards)[0]["image"] == "row-0"


def test_a_parquet_file_and_a_folder_of_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    # plain bytes, as other tools write them
    dataset = Dataset.from_dict({"image": [PICTURE] * 3, "question": ["What?"] * 3, "answer": ["Grey."] * 3})
    dataset.to_parquet(tmp_path / "data" / "train.parquet")
    columns = {"question_column": "question", "answer_column": "answer"}
    for number, name in enumerate(("data", "data/train.parquet")):
        given = config(str(tmp_path / name), tmp_path, out=str(tmp_path / f"out{number}"), **columns)
        shards = ShardSet.open(build_hf(given))
        assert [shards.get(place)["jpg"] for place in range(3)] == [PICTURE] * 3


def test_processes_change_no_byte_and_copies_of_the_data_have_one_plan(tmp_path: Path) -> None:
    columns = {"conversations_column": "conversations", "per_shard": 2}
    folders = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        given = config(saved(rows(7), folder), tmp_path, out=str(folder / "out"), processes=processes, **columns)
        build_hf(given)
        folders.append({path.name: path.read_bytes() for path in (folder / "out").iterdir()})
    assert folders[0] == folders[1]
    assert len(folders[0]) == 4 * 2 + 2


def test_pictures_that_cannot_be_used_are_written_down(tmp_path: Path) -> None:
    outside = tmp_path / "there.png"
    Pillow.new("RGB", (4, 4)).save(outside)
    (tmp_path / "gone.jpg").write_bytes(PICTURE)
    pictures = [
        None,
        {"bytes": b"", "path": "empty.jpg"},
        {"bytes": PICTURE[:200], "path": "half.jpg"},
        {"bytes": None, "path": str(tmp_path / "gone.jpg")},
        {"bytes": None, "path": str(outside)},
    ]
    # as other tools write them: saved as images, `datasets` would copy the files into the data set
    kind = {"bytes": Value("binary"), "path": Value("string")}
    dataset = saved(rows(5, kind, image=pictures), tmp_path)
    given = config(dataset, tmp_path, conversations_column="conversations")
    (tmp_path / "gone.jpg").unlink()
    shards = ShardSet.open(build_hf(given))
    assert [content["image"] for content in contents(shards)] == ["there.png"]
    found = reasons(tmp_path)
    assert found[:2] == ["no image", "image is empty: empty.jpg"]
    assert found[2].startswith("image does not decode: half.jpg")
    assert found[3] == "image does not exist: gone.jpg"


def test_splits(tmp_path: Path) -> None:
    dataset = saved(DatasetDict({"train": rows(2), "val": rows(3)}), tmp_path)
    given = config(dataset, tmp_path, split="val", conversations_column="conversations")
    assert len(ShardSet.open(build_hf(given))) == 3
    with pytest.raises(ValueError, match="has no split 'test'; it has train, val"):
        build_hf(config(dataset, tmp_path, split="test", conversations_column="conversations"))


def test_a_folder_saved_without_splits_has_no_other_split(tmp_path: Path) -> None:
    given = config(saved(rows(2), tmp_path), tmp_path, split="val", conversations_column="conversations")
    with pytest.raises(ValueError, match="was saved as one data set without splits; leave split=val out"):
        build_hf(given)


def test_missing_columns_are_named_with_those_there_are(tmp_path: Path) -> None:
    dataset = saved(rows(), tmp_path)
    message = r"has no column picture, talk; it has image, caption, captions, conversations, question, answer"
    with pytest.raises(ValueError, match=message):
        build_hf(config(dataset, tmp_path, image_column="picture", conversations_column="talk"))
    with pytest.raises(ValueError, match=r"column caption holds Value\('string'\), not images"):
        build_hf(config(dataset, tmp_path, image_column="caption", conversations_column="conversations"))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "name either caption_column"),
        ({"caption_column": "c", "vq": "v", "conversations_column": "t"}, "name either caption_column"),
        ({"question_column": "q"}, "question_column and answer_column belong together"),
        ({"caption_column": "c"}, "vq, the image tokenizer file, and caption_column belong together"),
        ({"conversations_column": "t", "vq": "v"}, "vq, the image tokenizer file, and caption_column belong together"),
        ({"conversations_column": "t", "batch": 0}, "batch=0 must be at least 1"),
    ],
)
def test_contradicting_settings_are_named(values, problem: str) -> None:
    (found,) = HfConfig(dataset="", out="", **values).problems()
    assert found.startswith(problem)
    assert HfConfig(dataset="", out="", caption_column="c", vq="v").problems() == []
    assert HfConfig(dataset="", out="", question_column="q", answer_column="a").problems() == []
