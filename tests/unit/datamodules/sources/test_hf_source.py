import bz2
import gzip
import json
import lzma
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

from datamodules.sources import hf
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


COLUMNS = {"question_column": "question", "answer_column": "answer"}


def plain(question: str) -> Dataset:
    return Dataset.from_dict({"image": [PICTURE], "question": [question], "answer": ["Grey."]})


@pytest.mark.parametrize("name", ["part[1].parquet", "a*b.parquet", "a?c.parquet", "[!p].parquet"])
def test_the_file_that_is_named_is_read_and_no_other(tmp_path: Path, name: str) -> None:
    for other in ("part1.parquet", "aXb.parquet", "axc.parquet", "q.parquet"):
        plain("other").to_parquet(tmp_path / other)
    plain("named").to_parquet(tmp_path / name)
    shards = ShardSet.open(build_hf(config(str(tmp_path / name), tmp_path, **COLUMNS)))
    assert [content["conversations"][0]["value"] for content in contents(shards)] == ["<image>\nnamed"]


@pytest.mark.parametrize(
    ("name", "separator"),
    [
        *((name, "") for name in ("r.jsonl", "r.JSONL", "r.jsonl.gz", "r.json.xz", "r.ndjson.bz2")),
        *((name, ",") for name in ("v1.2.csv", "r.csv.gz")),
        *((name, "\t") for name in ("r.tsv", "r.tsv.gz")),
    ],
)
def test_texts_are_read_by_the_end_of_their_name(tmp_path: Path, name: str, separator: str) -> None:
    row = {"question": "What, then?", "answer": 'A "tab"'}
    text = json.dumps(row)
    if separator:
        quoted = [f'"{value}"' for value in ("What, then?", 'A ""tab""')]
        text = f"question{separator}answer\n{separator.join(quoted)}"
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(text.encode() + b"\n"))
    given = config(str(tmp_path / name), tmp_path, image_column="question", **COLUMNS)
    with pytest.raises(
        ValueError, match=r"holds Value\(.*string'\), not images; if these are file names, use the source"
    ):
        build_hf(given)
    assert hf._load(given)[0] == row


@pytest.mark.parametrize("name", ["r.txt", "r", "r.gz", "r.parquet.gz", "r.jsonl.zst", "r.zip", "r.pkl", ".jsonl"])
def test_files_of_other_kinds_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"data set file .*{name} has an unknown extension; name a file that ends in"):
        build_hf(config(str(tmp_path / name), tmp_path, **COLUMNS))


def test_folders_of_which_datasets_would_read_other_files_are_refused(tmp_path: Path) -> None:
    for name in ("set[1]", "set1", "whole", "elsewhere"):
        (tmp_path / name).mkdir()
        plain(name).to_parquet(tmp_path / name / "train.parquet")
    with pytest.raises(ValueError, match=r"data set folder .*set\[1\]: `datasets` reads .* as patterns; rename"):
        build_hf(config(str(tmp_path / "set[1]"), tmp_path, **COLUMNS))
    (tmp_path / "whole" / "part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"holds the linked folder .*whole/part, which `datasets` does not enter"):
        build_hf(config(str(tmp_path / "whole"), tmp_path, **COLUMNS))
    (tmp_path / "a::b.parquet").write_bytes((tmp_path / "set1" / "train.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"`datasets` reads :: as a chain of places; rename"):
        build_hf(config(str(tmp_path / "a::b.parquet"), tmp_path, **COLUMNS))


@pytest.mark.parametrize("place", ["train.parquet", ""])
def test_pointers_of_git_lfs_are_recognised(tmp_path: Path, place: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"data set file .*train\.parquet is a git-lfs pointer, .* `git lfs pull`"):
        build_hf(config(str(tmp_path / "data" / place), tmp_path, **COLUMNS))


def test_texts_that_are_not_unicode_are_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    odd = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    table = pyarrow.table({"image": [PICTURE], "question": odd, "answer": ["Grey."]})
    pyarrow.parquet.write_table(table, tmp_path / "odd.parquet")
    with pytest.raises(
        ValueError, match=r"odd\.parquet: column question, answer holds text that is not UTF-8 .*; conv"
    ):
        build_hf(config(str(tmp_path / "odd.parquet"), tmp_path, **COLUMNS))


@pytest.mark.parametrize("end", [4, 60, -1])
def test_a_damaged_file_is_named(tmp_path: Path, end: int) -> None:
    rows().to_parquet(tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[:end])
    config = HfConfig(dataset=str(tmp_path / "rows.parquet"), caption_column="caption", vq="x", out=str(tmp_path / "o"))
    with pytest.raises(ValueError, match=r"data set .*rows\.parquet cannot be read \(.*\); fetch it again"):
        build_hf(config)
