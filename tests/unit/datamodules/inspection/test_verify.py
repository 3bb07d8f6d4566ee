import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from datamodules.inspection.verify import EVERY_SHARD, Fault, content_fault, in_processes, shards_of, verify
from datamodules.shards.reader import DamagedShardError, ShardSet
from tests.unit.datamodules.writing import write_shards

COUNT, VICTIM = 12, 5


def jpeg_of(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def talk(question: str = "<image>\nQ?", answer: str = "A") -> bytes:
    return json.dumps(
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
    ).encode()


def samples() -> Iterator[tuple[str, Mapping[str, bytes]]]:
    for number in range(COUNT):
        yield f"talk-{number:02d}", {"json": talk(f"<image>{number}?"), "jpg": jpeg_of(number * 20)}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Twelve samples, all in one shard."""
    return write_shards(tmp_path / "set", "talks", samples(), per_shard=COUNT, meta={})


def spoiled(content: bytearray, header: int, payload: int, end: int, kind: str) -> bytearray:
    """``content`` of a tar, damaged about the member with this header and payload; ``end`` is where members end."""
    if kind == "header checksum":
        content[header + 150] ^= 1
    elif kind == "zeroed header":
        content[header : header + 512] = bytes(512)
    elif kind == "flipped bit":
        content[payload + 40] ^= 1
    else:
        del content[
            {"cut in header": header + 100, "cut at header": header, "cut in payload": payload + 40}.get(kind, end) :
        ]
    return content


KINDS = {
    "header checksum": "right",
    "zeroed header": "right",
    "cut in header": "size",
    "cut at header": "size",
    "cut in payload": "size",
    "no end of archive": "size",
    "flipped bit": "crc32",
}
"""Damage, and what this reader does: it gives the right bytes, or finds it by size or by crc32."""


def damage(manifest: Path, kind: str) -> Path:
    """Damage the picture of the sample VICTIM."""
    tar = manifest.parent / "talks-000000.tar"
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
    victim = next(member for member in members if member.name == f"talk-{VICTIM:02d}.jpg")
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    tar.write_bytes(spoiled(bytearray(tar.read_bytes()), victim.offset, victim.offset_data, end, kind))
    return tar


@pytest.mark.parametrize("kind", KINDS)
def test_the_reader_never_delivers_damage(manifest: Path, kind: str) -> None:
    tar = damage(manifest, kind)
    if KINDS[kind] == "size":
        with pytest.raises(DamagedShardError, match=rf"shard {tar} has \d+ bytes, its manifest says \d+"):
            ShardSet.open(manifest)
        return
    shards = ShardSet.open(manifest)
    for number, (_, payloads) in enumerate(samples()):
        if KINDS[kind] == "crc32" and number == VICTIM:
            with pytest.raises(DamagedShardError, match=rf"{tar}, key talk-05: payload \.jpg is not the one.*crc32"):
                shards.get(number)
        else:
            assert shards.get(number) == payloads


@pytest.mark.parametrize("kind", ["header checksum", "zeroed header", "cut in header", "cut at header"])
def test_plain_webdataset_would_lose_samples_silently(manifest: Path, kind: str) -> None:
    tar = damage(manifest, kind)
    read = list(webdataset.WebDataset([str(tar)], shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [key for key, _ in samples()][:VICTIM]


def test_plain_webdataset_would_deliver_a_flipped_bit(manifest: Path) -> None:
    tar = damage(manifest, "flipped bit")
    read = list(webdataset.WebDataset([str(tar)], shardshuffle=False))
    assert [n for n, (_, payloads) in enumerate(samples()) if read[n]["jpg"] != payloads["jpg"]] == [VICTIM]


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_finds_every_damage(manifest: Path, kind: str) -> None:
    damage(manifest, kind)
    faults = verify(manifest, sha256=True).faults
    assert any(fault.what.startswith("has sha256") for fault in faults)
    assert any(fault.what.startswith("has ") and "bytes" in fault.what for fault in faults) == (KINDS[kind] == "size")
    keys = [fault.key for fault in faults if fault.key]
    lost = [f"talk-{n:02d}" for n in range(VICTIM, COUNT)]
    if KINDS[kind] == "right" or kind == "no end of archive":
        assert keys == []
    elif kind == "flipped bit":
        assert keys == ["talk-05"]
    else:
        assert sorted(set(keys)) == lost


def test_a_whole_data_set_has_no_faults(manifest: Path) -> None:
    found = verify(manifest, sha256=True, decode=True)
    assert (found.shards, found.samples, found.faults) == (1, COUNT, [])
    assert found.bytes == (manifest.parent / "talks-000000.tar").stat().st_size


def test_without_the_hash_only_sizes_and_indexes_are_looked_at(manifest: Path) -> None:
    damage(manifest, "flipped bit")
    assert verify(manifest).faults == []
    [fault] = verify(manifest, decode=True).faults
    assert (fault.shard, fault.key) == ("talks-000000", "talk-05")
    assert fault.what.startswith(".jpg is not the one that was written")


def test_every_fault_is_listed_by_any_number_of_processes(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, "talks", samples(), per_shard=2, meta={})
    (tmp_path / "talks-000000.tar").unlink()
    (tmp_path / "talks-000001.idx.npz").unlink()
    (tmp_path / "talks-000003.idx.npz").write_bytes(b"other")
    os.truncate(tmp_path / "talks-000004.tar", 512)
    told: list[tuple[int, int]] = []
    one = verify(manifest, progress=lambda *count: told.append(count))
    assert told == [(n, 6) for n in range(1, 7)]
    assert [(fault.shard, fault.key) for fault in one.faults] == [
        ("talks-000000", None),
        ("talks-000001", None),
        ("talks-000003", None),
        ("talks-000004", None),
    ]
    for fault, what in zip(
        one.faults,
        ("000.tar is missing", "001.idx.npz is missing", "differs from its manifest", "has 512 bytes"),
        strict=True,
    ):
        assert what in fault.what
    assert shards_of(one.faults) == [f"talks-00000{n}" for n in (0, 1, 3, 4)]
    assert verify(manifest, processes=2).faults == one.faults
    with pytest.raises(ValueError, match="processes=0 must be at least 1"):
        verify(manifest, processes=0)


def test_a_key_in_two_shards_is_found(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, "talks", samples(), per_shard=6, meta={})
    content = json.loads(manifest.read_text())
    for ending in ("tar", "idx.npz"):
        (tmp_path / f"talks-000001.{ending}").write_bytes((tmp_path / f"talks-000000.{ending}").read_bytes())
    content["shards"][1] = {**content["shards"][0], "name": "talks-000001"}
    joined = "".join(shard["sha256"] for shard in content["shards"])
    content["fingerprint"] = hashlib.sha256(joined.encode()).hexdigest()
    manifest.write_text(json.dumps(content))
    faults = verify(manifest).faults
    assert faults == [
        Fault(shard=EVERY_SHARD, key=f"talk-{n:02d}", what="occurs 2 times; keys are unique") for n in range(6)
    ]
    assert shards_of(faults) == []


def test_a_cached_set_is_verified_in_its_cache(manifest: Path, tmp_path: Path) -> None:
    ShardSet.open(manifest, tmp_path / "cache")
    damage(manifest, "flipped bit")
    assert verify(manifest, tmp_path / "cache", sha256=True).faults == []
    assert "is missing" in verify(manifest, tmp_path / "elsewhere").faults[0].what


def test_a_url_is_verified_only_where_it_is_cached(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json is a URL: also name a cache folder"):
        verify(f"file://{manifest}")
    ShardSet.open(f"file://{manifest}", tmp_path / "cache")
    assert verify(f"file://{manifest}", tmp_path / "cache", sha256=True).faults == []


@pytest.mark.parametrize(
    ("field", "payload", "what"),
    [
        ("json", b"{", "is not JSON"),
        ("json", b"[]", "holds list, not an object"),
        ("json", b"{}", "holds neither captions nor conversations"),
        ("json", b'{"captions": []}', "has no captions"),
        ("json", b'{"captions": ["a", ""]}', "has captions that are not a list of non-empty texts"),
        ("json", b'{"captions": "a"}', "has captions that are not a list of non-empty texts"),
        ("json", b'{"conversations": [{"value": "Q"}]}', "no conversation of questions and answers"),
        ("json", b'{"conversations": []}', "no conversation of questions and answers"),
        ("json", b'{"conversations": 3}', "no conversation of questions and answers"),
        ("jpg", b"no picture", "does not decode"),
        ("png", b"", "does not decode"),
        ("vq", b"", "has 0 bytes"),
        ("vq", b"abc", "has 3 bytes; each code has two"),
        ("vq", np.array([3, 16], "<u2").tobytes(), "holds code 16, but the codebook has 16"),
    ],
)
def test_content_that_cannot_be_used_is_told(field: str, payload: bytes, what: str) -> None:
    assert what in str(content_fault(field, payload, 16))


def test_content_that_can_be_used_has_no_fault() -> None:
    assert content_fault("json", b'{"captions": ["a"]}') is None
    assert content_fault("json", talk()) is None
    assert content_fault("jpg", jpeg_of(3)) is None
    assert content_fault("vq", np.array([3, 15], "<u2").tobytes(), 16) is None
    assert content_fault("vq", np.array([3, 60_000], "<u2").tobytes()) is None
    assert content_fault("other", b"") is None


def test_undecodable_content_is_found_although_its_checksum_is_right(tmp_path: Path) -> None:
    content = {"json": b'{"captions": ["c"]}', "vq": np.array([1, 99], "<u2").tobytes()}
    manifest = write_shards(tmp_path, "t2i", [("a", content)], per_shard=4, meta={"vq": {"codebook_size": 64}})
    assert verify(manifest, sha256=True).faults == []
    assert verify(manifest, decode=True).faults == [
        Fault(shard="t2i-000000", key="a", what=".vq holds code 99, but the codebook has 64")
    ]


def test_work_is_handed_back_in_order() -> None:
    assert list(in_processes(str, [3, 1, 2], 2)) == list(in_processes(str, [3, 1, 2], 1)) == ["3", "1", "2"]
