import gc
import hashlib
import io
import json
import os
import pickle
import tarfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import webdataset

from datamodules.shards.fetch import FetchError
from datamodules.shards.reader import DamagedShardError, ShardSet
from tests.unit.datamodules.writing import payload_offset, write_shards


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
    with tarfile.open(manifest.parent / "demo-000001.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert list(members) == [f"key-{n:04d}.{ext}" for n in range(4, 8) for ext in ("json", "vq")]
    assert all(member.mtime == 0 and not member.pax_headers for member in members.values())
    for place in range(4, 8):
        assert payload_offset(manifest, place, "vq") == members[f"key-{place:04d}.vq"].offset_data


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
    content[payload_offset(manifest, 5, "vq") + 100] ^= 1
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
    with pytest.raises(DamagedShardError, match="total or fingerprint do not match"):
        ShardSet.open(manifest)
    manifest.write_text(json.dumps({**content, "format_version": 9}))
    with pytest.raises(ValueError, match="has format_version 9; this code reads 2"):
        ShardSet.open(manifest)
    manifest.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        ShardSet.open(manifest)


DAMAGE: dict[str, tuple[object, str]] = {
    "a list": ([], r"is \[\], expected an object"),
    "empty": ({}, "has format_version None; this code reads 2"),
    "no shards": ({"shards": []}, r"shards is \[\], expected at least 1 of them, not 0; copy or build it again"),
    "shards of another type": ({"shards": {"a": 1}}, "shards is {'a': 1}, expected a list"),
    "a shard that is no object": ({"shards": [3]}, r"shards\[0\] is 3, expected an object"),
    "a shard without a size": ({"shards": [{"name": "a", "n": 1}]}, r"shards\[0\].bytes is missing"),
    "another total": ({"total": 11}, "total or fingerprint do not match"),
    "no total": ({"total": None}, "total is null, expected a whole number"),
    "another fingerprint": ({"fingerprint": "0" * 64}, "total or fingerprint do not match"),
    "no meta": ({"meta": None}, "meta is null, expected an object"),
    "meta of another type": ({"meta": [1]}, r"meta is \[1\], expected an object"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_is_named(manifest: Path, damage: str) -> None:
    changed, message = DAMAGE[damage]
    if isinstance(changed, dict) and changed:
        changed = {**json.loads(manifest.read_text()), **changed}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=rf"manifest {manifest}:? {message}|manifest {manifest}: .*{message}"):
        ShardSet.open(manifest)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "../other", r"name is '\.\./other', expected a text like"),
        ("name", 7, "name is 7, expected a text"),
        ("n", 1.5, r"n is 1\.5, expected a whole number"),
        ("n", True, "n is true, expected a whole number"),
        ("n", 0, "n is 0, expected at least 1"),
        ("n", 10**30, "n is 10+, expected at most"),
        ("bytes", "12", "bytes is '12', expected a whole number"),
        ("sha256", None, "sha256 is null, expected a text"),
        ("idx_sha256", "AB", r"idx_sha256 is 'AB', expected a text like \^\[0-9a-f\]"),
        ("fields", "json", "fields is 'json', expected a list"),
        ("fields", [], r"fields is \[\], expected at least 1 of them"),
        ("fields", [None], r"fields\[0\] is null, expected a text"),
    ],
)
def test_an_impossible_shard_is_named(manifest: Path, key: str, value: object, message: str) -> None:
    content = json.loads(manifest.read_text())
    content["shards"][1][key] = value
    manifest.write_text(json.dumps(content))
    with pytest.raises(DamagedShardError, match=rf"manifest {manifest}: shards\[1\]\.{message}"):
        ShardSet.open(manifest)


def test_shards_that_are_not_alike_are_refused(manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    twice = {**content, "shards": [content["shards"][0]] * 2}
    manifest.write_text(json.dumps(twice))
    with pytest.raises(DamagedShardError, match="names a shard twice"):
        ShardSet.open(manifest)
    content["shards"][2]["fields"] = ["json"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(DamagedShardError, match="its shards hold different fields"):
        ShardSet.open(manifest)
    for shard in content["shards"]:
        shard["fields"] = ["json", "json"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(DamagedShardError, match="its shards hold different fields, or one twice"):
        ShardSet.open(manifest)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"total": ' + b"9" * 5000 + b"}", b"null", b"3", b'{"n": NaN}'],
)
def test_a_manifest_that_is_no_manifest_is_named(manifest: Path, text: bytes) -> None:
    manifest.write_bytes(text)
    with pytest.raises(
        ValueError, match=rf"manifest {manifest}:? is (not valid JSON|nested too|null, expected an|3, expected an)"
    ):
        ShardSet.open(manifest)


def test_a_manifest_that_is_a_pointer_of_git_lfs_is_named(manifest: Path) -> None:
    manifest.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match=rf"manifest {manifest} is a git-lfs pointer, .* `git lfs pull`"):
        ShardSet.open(manifest)


def test_shards_that_are_pointers_of_git_lfs_are_named(manifest: Path) -> None:
    (manifest.parent / "demo-000001.tar").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(ValueError, match=r"shard .*demo-000001\.tar is a git-lfs pointer, not the file itself"):
        ShardSet.open(manifest)


def test_a_linked_manifest_has_its_shards_next_to_it_or_to_its_target(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "t2i.json"
    link.symlink_to(manifest)
    whole = [payloads for _, payloads in samples()]
    assert [ShardSet.open(link).get(place) for place in range(10)] == whole
    assert len(ShardSet.open(link, tmp_path / "cache")) == 10
    (tmp_path / "again.json").symlink_to(link)
    assert len(ShardSet.open(tmp_path / "again.json")) == 10
    for path in manifest.parent.glob("demo-*"):
        path.rename(link.parent / path.name)
    assert [ShardSet.open(link).get(place) for place in range(10)] == whole
    next(link.parent.glob("demo-000000.tar")).unlink()
    with pytest.raises(FileNotFoundError, match=r"here/demo-000000\.tar is missing, but .*t2i\.json names it"):
        ShardSet.open(link)


def test_a_folder_means_the_manifest_in_it(manifest: Path, tmp_path: Path) -> None:
    assert ShardSet.open(manifest.parent).get(3) == ShardSet.open(manifest).get(3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty/manifest\.json does not exist, so there is no complete data"):
        ShardSet.open(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="there is no complete data set"):
        ShardSet.open(manifest.parent / "manifest.json" / "deeper")


def vouch_for(index: Path, content: bytes) -> None:
    """Write ``content`` as the index and its hash to the manifest."""
    manifest = index.parent / "manifest.json"
    record = json.loads(manifest.read_text())
    record["shards"][0]["idx_sha256"] = hashlib.sha256(content).hexdigest()
    manifest.write_text(json.dumps(record))
    index.write_bytes(content)


def table_of(index: Path) -> np.ndarray:
    return np.load(index)["index"].copy()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_an_index_that_does_not_fit_its_shard_is_refused(manifest: Path) -> None:
    index = manifest.parent / "demo-000000.idx.npz"
    table = table_of(index)
    outside, negative, text = table.copy(), table.copy(), table.copy()
    outside["vq.offset"][1] = 10**15
    huge = table.astype([(name, "<u8" if name == "vq.offset" else kind) for name, kind in table.dtype.descr])
    huge["vq.offset"][1] = 2**64 - 1
    negative["vq.size"][1] = -1
    for content, message in (
        (npz(index=table[:3]), r"has shape \(3,\), its manifest says 4 samples"),
        (npz(index=table[["key", "json.offset"]]), "does not have the columns of json, vq"),
        (npz(index=np.zeros(4)), "does not have the columns of json, vq"),
        (npz(index=text.astype([(n, "S9" if n == "vq.size" else t) for n, t in text.dtype.descr])), "neither text"),
        (npz(index=outside), r"places a \.vq outside its shard"),
        (npz(index=huge), r"places a \.vq outside its shard"),
        (npz(index=negative), r"places a \.vq outside its shard"),
        (npz(other=table), "cannot be read"),
        (b"no index", "cannot be read"),
        (b"", "cannot be read"),
    ):
        vouch_for(index, content)
        with pytest.raises(DamagedShardError, match=rf"index .*demo-000000\.idx\.npz .*{message}"):
            ShardSet.open(manifest)


def test_places_and_names(manifest: Path) -> None:
    shards = ShardSet.open(str(manifest))
    assert [shards.shard_of(place) for place in (0, 3, 4, 9)] == [f"demo-00000{n}" for n in (0, 0, 1, 2)]
    assert shards.keys.tolist() == [f"key-{n:04d}".encode() for n in range(10)]
    assert shards.sizes("vq").tolist() == [len(payloads["vq"]) for _, payloads in samples()]
    with pytest.raises(IndexError, match="sample 10 of"):
        shards.shard_of(10)


def test_a_url_needs_a_cache(manifest: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest file://.*manifest\.json is a URL: also name a cache folder"):
        ShardSet.open(f"file://{manifest}")


def test_a_url_that_is_not_there_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest file://.*manifest\.json does not exist"):
        ShardSet.open(f"file://{tmp_path}/manifest.json", tmp_path / "cache")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_cached_set_is_read_from_the_cache(manifest: Path, tmp_path: Path, scheme: str) -> None:
    told: list[tuple[int, int]] = []
    cached = ShardSet.open(f"{scheme}{manifest}", tmp_path / "cache", progress=lambda *count: told.append(count))
    assert told[-1] == (6, 6)
    assert cached.fingerprint == ShardSet.open(manifest).fingerprint
    for file in manifest.parent.glob("demo*"):
        file.unlink()
    assert [cached.get(place) for place in range(10)] == [payloads for _, payloads in samples()]
    again = ShardSet.open(f"{scheme}{manifest}", tmp_path / "cache")
    assert again.get(9) == cached.get(9)


def cached_tar(cache: Path, number: int) -> Path:
    [path] = cache.glob(f"*-demo-00000{number}.tar")
    return path


def flip(tar: Path, offset: int) -> None:
    content = bytearray(tar.read_bytes())
    content[offset] ^= 1
    tar.write_bytes(content)


def test_a_damaged_cached_shard_is_fetched_again(manifest: Path, tmp_path: Path) -> None:
    cached = ShardSet.open(manifest, tmp_path / "cache")
    tar = cached_tar(tmp_path / "cache", 1)
    flip(tar, payload_offset(manifest, 5, "vq") + 100)
    assert cached.get(5) == list(samples())[5][1]
    assert tar.read_bytes() == (manifest.parent / "demo-000001.tar").read_bytes()
    tar.unlink()
    cached.close()
    assert cached.get(6) == list(samples())[6][1]


def test_a_worker_fetches_again_too(manifest: Path, tmp_path: Path) -> None:
    cached = ShardSet.open(f"file://{manifest}", tmp_path / "cache")
    cached.get(5)
    flip(cached_tar(tmp_path / "cache", 1), payload_offset(manifest, 5, "json"))
    with get_context("fork").Pool(3) as pool:
        assert pool.starmap(_read, [(cached, 5)] * 6) == [b'{"n": 5}'] * 6


def test_a_shard_damaged_at_its_source_too_stops(manifest: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("datamodules.shards.fetch.time.sleep", lambda _: None)
    cached = ShardSet.open(manifest, tmp_path / "cache")
    offset = payload_offset(manifest, 5, "vq")
    for tar in (cached_tar(tmp_path / "cache", 1), manifest.parent / "demo-000001.tar"):
        flip(tar, offset)
    with pytest.raises(FetchError, match=r"demo-000001\.tar could not be fetched in 5 tries: its sha256 is"):
        cached.get(5)


def test_a_file_replaced_by_a_good_one_is_opened_again(manifest: Path) -> None:
    tar = manifest.parent / "demo-000001.tar"
    shards, good = ShardSet.open(manifest), tar.read_bytes()
    shards.get(5)
    tar.write_bytes(bytes(len(good)))  # what the open handle still sees
    repaired = tar.with_suffix(".new")
    repaired.write_bytes(good)
    os.replace(repaired, tar)
    assert shards.get(5) == list(samples())[5][1]


def test_a_shard_that_cannot_be_opened_any_more_is_named(manifest: Path) -> None:
    shards = ShardSet.open(manifest)
    (manifest.parent / "demo-000002.tar").unlink()
    with pytest.raises(DamagedShardError, match=r"demo-000002\.tar, key key-0008: .* cannot be read \(.*No such file"):
        shards.get(8)


def _read(shards: ShardSet, place: int) -> bytes:
    return shards.get(place)["json"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_too(manifest: Path, method: str) -> None:
    shards = ShardSet.open(manifest)
    shards.get(3)
    with get_context(method).Pool(1) as pool:
        assert pool.starmap(_read, [(shards, 3), (shards, 9)]) == [b'{"n": 3}', b'{"n": 9}']


def open_tars() -> int:
    """Tar files that this process holds open; what an earlier test left behind is closed first."""
    gc.collect()
    links = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).endswith(".tar") for link in links if os.path.islink(link))


def test_a_copy_opens_its_own_files(manifest: Path) -> None:
    shards = ShardSet.open(manifest)
    shards.get(0)
    copy = pickle.loads(pickle.dumps(shards))
    shards.close()
    assert copy.get(0) == next(iter(samples()))[1]
    assert open_tars() == 1  # the copy's, of the shard that it has read


def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    shards = ShardSet.open(write_shards(tmp_path, "demo", samples(200), per_shard=1, meta={}))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [json.loads(shards.get(place)["json"])["n"] for place in range(200)] == list(range(200))
    assert len(os.listdir("/proc/self/fd")) - before == 128
    shards.close()
    assert len(os.listdir("/proc/self/fd")) == before
