import hashlib
import json
import os
import pickle
import tarfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
import webdataset

from datamodules.shard_writer import write_shards
from datamodules.shards import DamagedShardError, ShardSet


def samples(count: int = 10) -> Iterator[tuple[str, dict[str, bytes]]]:
    for number in range(count):
        # sizes below, at and above a tar block, and none at all
        size = (0, 1, 511, 512, 513, 20_000)[number % 6]
        yield f"key-{number:04d}", {"vq": bytes([number]) * size, "json": json.dumps({"n": number}).encode()}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "set", "demo", samples(), per_shard=4, meta={"source": "test"})


def test_samples_come_back_by_place(manifest: Path) -> None:
    shards = ShardSet.open(manifest)
    assert len(shards) == 10
    assert shards.meta == {"source": "test"}
    for place in (9, 0, 4, 3, 7):
        key, payloads = list(samples())[place]
        assert shards.key(place) == key
        assert shards.get(place) == payloads
    for place in (-1, 10):
        with pytest.raises(IndexError, match=f"sample {place} of a data set of 10"):
            shards.get(place)


def test_webdataset_reads_every_sample(manifest: Path) -> None:
    urls = [str(path) for path in sorted(manifest.parent.glob("*.tar"))]
    assert len(urls) == 3
    read = [
        (sample["__key__"], {"vq": sample["vq"], "json": sample["json"]})
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    ]
    assert read == list(samples())


def test_plain_tar_tools_read_the_same_offsets(manifest: Path) -> None:
    shards = ShardSet.open(manifest)
    with tarfile.open(manifest.parent / "demo-000001.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert list(members) == [f"key-{n:04d}.{ext}" for n in range(4, 8) for ext in ("json", "vq")]
    assert all(member.mtime == 0 and not member.pax_headers for member in members.values())
    for place in range(4, 8):
        assert shards._index["vq.offset"][place] == members[f"key-{place:04d}.vq"].offset_data


def test_manifest(manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    assert content["format_version"] == 2
    assert content["name"] == "demo"
    assert content["total"] == 10
    assert [shard["n"] for shard in content["shards"]] == [4, 4, 2]
    for shard in content["shards"]:
        tar = (manifest.parent / f"{shard['name']}.tar").read_bytes()
        assert shard["bytes"] == len(tar)
        assert shard["sha256"] == hashlib.sha256(tar).hexdigest()
        assert shard["fields"] == ["json", "vq"]
    joined = "".join(shard["sha256"] for shard in content["shards"])
    assert content["fingerprint"] == hashlib.sha256(joined.encode()).hexdigest() == ShardSet.open(manifest).fingerprint


def test_two_builds_at_different_times_have_the_same_bytes(tmp_path: Path, monkeypatch) -> None:
    first = write_shards(tmp_path / "a", "demo", samples(), per_shard=4, meta={}).parent
    later = time.time() + 1e7
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(later))
    second = write_shards(tmp_path / "b", "demo", samples(), per_shard=4, meta={}).parent
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second)]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 7


def test_the_fingerprint_follows_the_content(manifest: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "b", "demo", samples(9), per_shard=4, meta={})
    assert ShardSet.open(other).fingerprint != ShardSet.open(manifest).fingerprint


def test_counts_made_while_writing_reach_the_manifest(tmp_path: Path) -> None:
    meta = {"seen": 0}

    def counted() -> Iterator[tuple[str, dict[str, bytes]]]:
        for sample in samples(3):
            meta["seen"] += 1
            yield sample

    assert ShardSet.open(write_shards(tmp_path, "demo", counted(), per_shard=9, meta=meta)).meta == {"seen": 3}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (("COCO.train.1", {"vq": b"", "json": b""}), "key 'COCO.train.1' may hold only letters"),
        (("", {"vq": b"", "json": b""}), "key '' may hold only"),
        (("key-0001", {"vq": b"", "json": b""}), "key 'key-0001' occurs twice"),
        (("other", {"json": b""}), r"key 'other' has fields \['json'\], the samples before it \['json', 'vq'\]"),
    ],
)
def test_samples_that_readers_would_mix_up_are_refused(tmp_path: Path, bad, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shards(tmp_path, "demo", [*samples(6), bad], per_shard=4, meta={})
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob("*partial*"))


def test_other_unusable_input_is_refused(tmp_path: Path, manifest: Path) -> None:
    with pytest.raises(ValueError, match=r"no samples for .*demo"):
        write_shards(tmp_path / "none", "demo", [], per_shard=4, meta={})
    with pytest.raises(ValueError, match=r"data set name 'a\.b'"):
        write_shards(tmp_path / "none", "a.b", samples(), per_shard=4, meta={})
    with pytest.raises(ValueError, match="per_shard=0 must be at least 1"):
        write_shards(tmp_path / "none", "demo", samples(), per_shard=0, meta={})
    with pytest.raises(ValueError, match="field 'JPG' is no extension"):
        write_shards(tmp_path / "none", "demo", [("a", {"JPG": b""})], per_shard=4, meta={})
    with pytest.raises(FileExistsError, match="already holds a data set"):
        write_shards(manifest.parent, "demo", samples(), per_shard=4, meta={})


def test_an_interrupted_build_is_no_data_set_and_can_be_repeated(tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield from samples(6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, "demo", interrupted(), per_shard=4, meta={})
    with pytest.raises(FileNotFoundError, match="there is no complete data set"):
        ShardSet.open(tmp_path / "manifest.json")
    assert len(ShardSet.open(write_shards(tmp_path, "demo", samples(), per_shard=4, meta={}))) == 10


def test_a_short_shard_is_found_on_opening(manifest: Path) -> None:
    tar = manifest.parent / "demo-000001.tar"
    size = tar.stat().st_size
    os.truncate(tar, size - 512)
    with pytest.raises(DamagedShardError, match=rf"demo-000001\.tar has {size - 512} bytes, its manifest says {size}"):
        ShardSet.open(manifest)
    tar.unlink()
    with pytest.raises(FileNotFoundError, match=r"demo-000001\.tar is missing"):
        ShardSet.open(manifest)


def test_a_flipped_bit_is_found_on_reading(manifest: Path) -> None:
    tar = manifest.parent / "demo-000001.tar"
    shards = ShardSet.open(manifest)
    content = bytearray(tar.read_bytes())
    content[int(shards._index["vq.offset"][5]) + 100] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DamagedShardError, match=r"demo-000001\.tar, key key-0005: payload \.vq is not the one"):
        shards.get(5)
    assert shards.get(7) == list(samples())[7][1]


def test_a_shard_that_shrinks_after_opening_is_found_on_reading(manifest: Path) -> None:
    shards = ShardSet.open(manifest)
    os.truncate(manifest.parent / "demo-000001.tar", 2048)
    with pytest.raises(DamagedShardError, match=r"0 of 8 bytes read"):
        shards.get(5)


def test_an_altered_index_or_manifest_is_found_on_opening(manifest: Path) -> None:
    index = manifest.parent / "demo-000000.idx.npz"
    good = index.read_bytes()
    index.write_bytes(good[:-1])
    with pytest.raises(DamagedShardError, match=r"demo-000000\.idx\.npz differs from its manifest"):
        ShardSet.open(manifest)
    index.write_bytes(good)
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "total": 11}))
    with pytest.raises(DamagedShardError, match="total or fingerprint do not fit"):
        ShardSet.open(manifest)
    manifest.write_text(json.dumps({**content, "format_version": 9}))
    with pytest.raises(ValueError, match="has format_version 9; this code reads 2"):
        ShardSet.open(manifest)
    manifest.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        ShardSet.open(manifest)


def _read(shards: ShardSet, place: int) -> bytes:
    return shards.get(place)["json"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_too(manifest: Path, method: str) -> None:
    shards = ShardSet.open(manifest)
    shards.get(3)
    with get_context(method).Pool(1) as pool:
        assert pool.starmap(_read, [(shards, 3), (shards, 9)]) == [b'{"n": 3}', b'{"n": 9}']


def test_a_copy_opens_its_own_files(manifest: Path) -> None:
    shards = ShardSet.open(manifest)
    shards.get(0)
    copy = pickle.loads(pickle.dumps(shards))
    assert not copy._files
    assert copy.get(9) == shards.get(9)


def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    shards = ShardSet.open(write_shards(tmp_path, "demo", samples(200), per_shard=1, meta={}))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [json.loads(shards.get(place)["json"])["n"] for place in range(200)] == list(range(200))
    assert len(os.listdir("/proc/self/fd")) - before == 128
    shards.close()
    assert len(os.listdir("/proc/self/fd")) == before
