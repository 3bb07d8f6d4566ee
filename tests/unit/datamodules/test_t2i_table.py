"""The memory map holds what the shards hold, is made once, and notices damage."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from datamodules.encode import encode_caption
from datamodules.shards.reader import DamagedShardError, ShardSet
from datamodules.t2i_table import T2ITable, open_table
from modules.omnimamba.tokenizer import TextTokenizer
from tests.unit.datamodules.writing import write_shards

CODES = np.random.default_rng(0).integers(0, 1 << 16, (9, 16)).astype("<u2")
CAPTIONS = [[f"{'x' * i} {j}" for j in range(1 + i % 3)] for i in range(9)]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    samples = [
        (f"image-{i}", {"json": json.dumps({"captions": CAPTIONS[i]}).encode(), "vq": CODES[i].tobytes()})
        for i in range(9)
    ]
    return write_shards(tmp_path / "set", "t2i", samples, per_shard=4, meta={})


@pytest.fixture
def table(manifest: Path, tokenizer: TextTokenizer, tmp_path: Path) -> T2ITable:
    return open_table(ShardSet.open(manifest), tokenizer, 12, tmp_path / "cache")


def test_codes_and_captions_are_those_of_the_shards(table: T2ITable, tokenizer: TextTokenizer) -> None:
    assert (len(table), table.image_tokens, table.largest_code) == (9, 16, CODES.max())
    indices = np.array([8, 0, 3, 3])
    codes = table.codes(indices)
    assert codes.dtype == np.int64
    assert np.array_equal(codes, CODES[indices])
    for choice in range(4):
        rows = table.captions(indices, np.full(4, choice, np.uint64))
        expected = [CAPTIONS[i][choice % len(CAPTIONS[i])] for i in indices]
        assert rows.tolist() == [encode_caption(tokenizer, text, 12) for text in expected]


def test_a_table_is_made_once(manifest: Path, table: T2ITable, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in table.folder.iterdir()}
    again = open_table(ShardSet.open(manifest), tokenizer, 12, tmp_path / "cache")
    assert again.folder == table.folder
    assert {path: path.stat().st_mtime_ns for path in table.folder.iterdir()} == before
    longer = open_table(ShardSet.open(manifest), tokenizer, 13, tmp_path / "cache")
    assert longer.folder != table.folder


def _open(manifest: Path, tokenizer: Path, cache: Path) -> int:
    table = open_table(ShardSet.open(manifest), TextTokenizer(tokenizer), 12, cache)
    return (table.folder / "codes.bin").stat().st_ino


def test_processes_that_ask_at_once_share_one(manifest: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        opened = pool.map(_open, [manifest] * 4, [tokenizer.path] * 4, [tmp_path / "shared"] * 4)
        assert len(set(opened)) == 1
    assert len([path for path in (tmp_path / "shared").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("name", ["codes.bin", "captions.bin"])
def test_a_flipped_bit_is_found_on_reading(table: T2ITable, name: str) -> None:
    path = table.folder / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)
    damaged = T2ITable(table.folder)
    first, last = np.array([0]), np.array([8])
    none = np.array([2], np.uint64)
    assert np.array_equal(damaged.codes(first)[0], CODES[0])
    with pytest.raises(DamagedShardError, match=rf"{name}, row \d+: not what was written\. Delete the folder"):
        (damaged.codes if name == "codes.bin" else lambda at: damaged.captions(at, none))(last)


def rows_of(table: T2ITable, name: str) -> np.ndarray:
    meta = json.loads((table.folder / "meta.json").read_text())
    shape = meta["codes" if name == "codes.bin" else "captions"]
    return np.fromfile(table.folder / name, "<u2").reshape(shape)


CHANGES = {
    "two rows exchanged": lambda rows: rows[[1, 0, *range(2, len(rows))]],
    "a row over another": lambda rows: rows[[0, 0, *range(2, len(rows))]],
    "shifted by a row": lambda rows: np.roll(rows, 1, axis=0),
    "shifted by a word": lambda rows: np.roll(rows, -1),
    "shifted by the words that all captions begin with": lambda rows: np.roll(rows, -2),
    "words of a row exchanged": lambda rows: rows[:, [1, 0, *range(2, rows.shape[1])]],
    "ones": lambda rows: np.full_like(rows, 1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["codes.bin", "captions.bin"])
def test_rows_in_other_places_are_found_on_reading(table: T2ITable, name: str, change: str) -> None:
    CHANGES[change](rows_of(table, name)).tofile(table.folder / name)
    damaged, all_ = T2ITable(table.folder), np.arange(9)
    choices = (np.arange(9) // 4).astype(np.uint64)
    with pytest.raises(DamagedShardError, match=rf"{name}, row \d+: not what was written\. Delete the folder"):
        (damaged.codes if name == "codes.bin" else lambda at: damaged.captions(at, choices))(all_)


@pytest.mark.parametrize("name", ["codes.bin", "captions.bin"])
@pytest.mark.parametrize("bit", [0, 7, 15])
@pytest.mark.parametrize("word", [0, 1, 9, -2, -1])
def test_a_single_bit_is_found_wherever_it_is(table: T2ITable, name: str, word: int, bit: int) -> None:
    rows = rows_of(table, name)
    rows[0, word] ^= np.uint16(1 << bit)
    rows.tofile(table.folder / name)
    damaged, at = T2ITable(table.folder), np.array([0])
    with pytest.raises(DamagedShardError, match=f"{name}, row 0"):
        damaged.codes(at) if name == "codes.bin" else damaged.captions(at, np.array([0], np.uint64))


def test_a_table_of_other_samples_is_not_mistaken_for_this_one(table: T2ITable, tmp_path: Path) -> None:
    table.folder.rename(tmp_path / "t2i-v3-other")
    with pytest.raises(DamagedShardError, match=r"cannot be read \(it was made as t2i-v3-.*\); delete it"):
        T2ITable(tmp_path / "t2i-v3-other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": [9, 0]}, r"codes\[1\] is 0, expected at least 1"),
        ({"codes": [9]}, "codes is .*expected at least 2"),
        ({"caption_type": "<f2"}, "caption_type is '<f2', expected"),
        ({"largest_code": "7"}, "largest_code is '7', expected a whole number"),
        ({"captions": None}, "captions is null, expected a list"),
        ({"codes": [10**30, 17]}, r"codes\.bin has \d+ bytes, not"),
    ],
)
def test_an_odd_description_is_named(table: T2ITable, change: dict[str, object], message: str) -> None:
    path = table.folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DamagedShardError, match=f"cannot be read .*{message}"):
        T2ITable(table.folder)


def test_a_page_of_zeros_is_found_on_reading(table: T2ITable) -> None:
    path = table.folder / "codes.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DamagedShardError, match=r"codes\.bin, row 4"):
        T2ITable(table.folder).codes(np.array([4]))


def test_captions_counted_wrongly_are_found_on_opening(table: T2ITable) -> None:
    first = np.fromfile(table.folder / "first.bin", "<i8")
    first[1:-1] = 2
    first.tofile(table.folder / "first.bin")
    with pytest.raises(DamagedShardError, match=r"first\.bin is not what was written"):
        T2ITable(table.folder)


@pytest.mark.parametrize("name", ["codes.bin", "captions.bin", "first.bin", "meta.json"])
def test_a_short_or_missing_file_is_found_on_opening(table: T2ITable, name: str) -> None:
    os.truncate(table.folder / name, (table.folder / name).stat().st_size - 8)
    with pytest.raises(DamagedShardError, match=r"cannot be read .* delete it, and it is rebuilt from the shards"):
        T2ITable(table.folder)
    (table.folder / name).unlink()
    with pytest.raises(DamagedShardError, match="cannot be read"):
        T2ITable(table.folder)


@pytest.mark.parametrize(
    ("captions", "codes", "message"),
    [
        ([], bytes(32), "shard odd-000000, key image-1 has no captions; prepare the data again without it"),
        ("abc", bytes(32), "key image-1 has captions that are not a list of non-empty texts"),
        (["x"], bytes(31), "key image-1 has 31 bytes; each code has two"),
        (["x"], bytes(30), "key image-1 has 15 codes, the samples before it another number"),
    ],
)
def test_what_makes_no_table_is_named(
    tmp_path: Path, tokenizer: TextTokenizer, captions: list[str], codes: bytes, message: str
) -> None:
    samples = [
        ("image-0", {"json": b'{"captions": ["x"]}', "vq": bytes(32)}),
        ("image-1", {"json": json.dumps({"captions": captions}).encode(), "vq": codes}),
    ]
    manifest = write_shards(tmp_path / "odd", "odd", samples, per_shard=4, meta={})
    with pytest.raises(ValueError, match=message):
        open_table(ShardSet.open(manifest), tokenizer, 12, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
