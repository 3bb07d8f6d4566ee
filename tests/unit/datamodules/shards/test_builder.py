import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import webdataset

from datamodules.shards.builder import build_shards
from datamodules.shards.folders import FolderError
from datamodules.shards.manifest import brace_pattern
from datamodules.shards.reader import ShardSet
from tests.unit.datamodules.writing import Item, Maker, build, items, payloads, threads_of_torch

ROOT = Path(__file__).parents[4]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def commits(folder: Path) -> list[Path]:
    return sorted((folder / ".build").glob("demo-*.json"))


def test_every_row_becomes_a_sample_in_the_plans_order(tmp_path: Path) -> None:
    shards = ShardSet.open(build(tmp_path / "set"))
    assert [(shards.key(place), shards.get(place)) for place in range(len(shards))] == [
        (item.key, payloads(item.number)) for item in items()
    ]


def test_webdataset_reads_every_sample_by_the_manifests_pattern(tmp_path: Path) -> None:
    manifest = build(tmp_path / "set", 30, make=Maker(rejects=(2, *range(8, 12))))
    pattern = json.loads(manifest.read_text())["pattern"]
    assert pattern == "demo-{{000000..000001},{000003..000007}}.tar"
    read = webdataset.WebDataset(str(manifest.parent / pattern), shardshuffle=False)
    assert [(sample["__key__"], {key: sample[key] for key in ("vq", "json")}) for sample in read] == [
        (item.key, payloads(item.number)) for item in items(30) if item.number not in (2, 8, 9, 10, 11)
    ]


@pytest.mark.parametrize(
    ("numbers", "pattern"),
    [
        ([0], "a-b-000000.tar"),
        ([0, 1, 2], "a-b-{000000..000002}.tar"),
        ([1, 3], "a-b-{000001,000003}.tar"),
        ([0, 1, 5], "a-b-{{000000..000001},000005}.tar"),
    ],
)
def test_brace_patterns_name_the_shards_there_are(numbers: list[int], pattern: str) -> None:
    names = [f"a-b-{number:06d}" for number in numbers]
    assert brace_pattern(names) == pattern
    assert webdataset.shardlists.expand_urls(pattern) == [f"{name}.tar" for name in names]


def test_members_are_plain_and_carry_no_time(tmp_path: Path) -> None:
    manifest = build(tmp_path / "set")
    with tarfile.open(manifest.parent / "demo-000001.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [f"key-{n:04d}.{ext}" for n in range(4, 8) for ext in ("json", "vq")]
    assert all(member.mtime == 0 and not member.pax_headers for member in members)


def test_the_manifest_says_what_was_built_from_what(tmp_path: Path) -> None:
    manifest = build(tmp_path / "set", make=Maker(rejects=(1, 5)), meta={"licence": "mine"})
    content = json.loads(manifest.read_text())
    assert (content["name"], content["total"]) == ("demo", 8)
    assert [shard["n"] for shard in content["shards"]] == [3, 3, 2]
    for shard in content["shards"]:
        tar = (manifest.parent / f"{shard['name']}.tar").read_bytes()
        assert shard["bytes"] == len(tar)
        assert shard["sha256"] == hashlib.sha256(tar).hexdigest()
        assert shard["fields"] == ["json", "vq"]
    meta = content["meta"]
    assert meta["counts"] == {"samples": 8, "rejected": 2, "threes": 4}
    assert (meta["source"], meta["licence"], meta["builder_version"], len(meta["plan"])) == ("test", "mine", 2, 64)
    lines = (manifest.parent / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"key": f"key-000{n}", "reason": f"number: {n} ünwanted"} for n in (1, 5)
    ]
    assert not (manifest.parent / ".build").exists()


def test_the_plan_changes_with_whatever_the_bytes_depend_on(tmp_path: Path) -> None:
    def plan(folder: str, *arguments, **values) -> str:
        return json.loads(build(tmp_path / folder, *arguments, **values).read_text())["meta"]["plan"]

    plans = [
        plan("a"),
        plan("c", 9),
        plan("d", per_shard=5),
        plan("e", meta={"captions": "other"}),
    ]
    assert len(set(plans)) == len(plans)
    assert plan("again") == plans[0]
    rows = [*items(9), Item(99)]
    other = build_shards(tmp_path / "f", "demo", rows, Maker(), per_shard=4, meta={"source": "test"})
    assert json.loads(other.read_text())["meta"]["plan"] not in plans


def test_the_number_of_processes_changes_no_byte(tmp_path: Path) -> None:
    make = Maker(rejects=(3, 8, 9, 10, 11))
    for processes in (1, 3):
        build(tmp_path / str(processes), 40, make=make, processes=processes)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert len(contents(tmp_path / "1")) == 9 * 2 + 2


def test_a_shard_without_samples_has_no_file(tmp_path: Path) -> None:
    folder = build(tmp_path / "set", make=Maker(rejects=(4, 5, 6, 7))).parent
    assert sorted(path.name for path in folder.glob("*.tar")) == ["demo-000000.tar", "demo-000002.tar"]
    assert [ShardSet.open(folder / "manifest.json").key(place) for place in (3, 4)] == ["key-0003", "key-0008"]


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.datamodules.writing import Maker, build
if __name__ == "__main__":
    build(Path(sys.argv[1]), 60, make=Maker(rejects=(3, 8, 9, 10, 11, 41), seconds=0.1), processes=2)
"""


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def _wait_for_end(workers: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(_is_running, workers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)


def test_a_killed_build_goes_on_to_the_same_bytes_with_another_number_of_processes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while len(commits(folder)) < 4:
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.02)
    workers = _children(process.pid)
    process.kill()
    process.wait()
    assert 4 <= len(commits(folder)) < 15
    with pytest.raises(FileNotFoundError, match="there is no complete data set"):
        ShardSet.open(folder / "manifest.json")
    _wait_for_end(workers)

    # a shard that lost its end, and one that is gone, are made again
    finished = [json.loads(path.read_text())["record"] for path in commits(folder)]
    tars = [folder / f"{record['name']}.tar" for record in finished if record]
    os.truncate(tars[0], 512)
    tars[1].with_suffix(".idx.npz").unlink()
    (folder / ".build" / "demo-000014.tar.partial-elsewhere-1").write_bytes(b"half")
    seen: list[tuple[int, int]] = []
    make = Maker(rejects=(3, 8, 9, 10, 11, 41))
    build(folder, 60, make=make, processes=3, progress=lambda *each: seen.append(each))
    assert seen[0] == (4 * (len(finished) - 2), 60)
    assert seen[-1] == (60, 60)
    build(tmp_path / "undisturbed", 60, make=make)
    assert contents(folder) == contents(tmp_path / "undisturbed")


def test_a_dead_worker_is_an_error_and_the_next_start_goes_on(tmp_path: Path) -> None:
    (tmp_path / "alive").touch()
    make = Maker(dies_once=str(tmp_path / "alive"))
    with pytest.raises(ChildProcessError, match=r"a worker process died .* start again to continue, with fewer"):
        build(tmp_path / "set", 20, make=make, processes=2)
    assert not (tmp_path / "set" / "manifest.json").exists()
    build(tmp_path / "set", 20, make=make, processes=2)
    build(tmp_path / "undisturbed", 20)
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


def _interrupted(rows: Sequence[Item], counts: Counter[str]) -> Iterator:
    if rows[0].number >= 8:
        raise KeyboardInterrupt
    yield from Maker()(rows, counts)


def test_an_interrupted_build_is_no_data_set_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "set", make=_interrupted)
    assert len(commits(tmp_path / "set")) == 2
    assert not (tmp_path / "set" / "manifest.json").exists()
    seen: list[tuple[int, int]] = []
    build(tmp_path / "set", progress=lambda *each: seen.append(each))
    assert seen == [(8, 10), (9, 10), (10, 10)]


def test_workers_and_this_process_compute_with_one_thread(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for processes in (1, 2):
            shards = ShardSet.open(build(tmp_path / str(processes), make=threads_of_torch, processes=processes))
            assert {shards.get(place)["txt"] for place in range(10)} == {b"1"}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_building_again_returns_at_once(tmp_path: Path) -> None:
    manifest = build(tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in manifest.parent.iterdir()}
    # as if killed between the last two steps
    (manifest.parent / ".build").mkdir()

    def never(*_) -> None:
        raise AssertionError

    assert build(tmp_path / "set", make=never) == manifest
    assert {path: path.stat().st_mtime_ns for path in manifest.parent.iterdir()} == before


def test_what_is_built_is_taken_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = build(tmp_path / "set")
    (tmp_path / ".set.lock").unlink()
    monkeypatch.setattr("datamodules.shards.builder.locked_folder", lambda _: pytest.fail("it was locked"))
    assert build(tmp_path / "set") == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_another_plan_is_refused_where_a_data_set_is_or_begins(tmp_path: Path) -> None:
    build(tmp_path / "set")
    with pytest.raises(FileExistsError, match=r"already holds a data set, made from other files or settings\. Choose"):
        build(tmp_path / "set", 9)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "begun", make=_interrupted)
    with pytest.raises(FolderError, match=r"rows is 10 there and 9 here\. Choose another folder.* or delete it"):
        build(tmp_path / "begun", 9)
    with pytest.raises(FolderError, match=r"licence is None there and 'mine' here"):
        build(tmp_path / "begun", meta={"licence": "mine"})
    assert len(commits(tmp_path / "begun")) == 2


def test_nothing_usable_is_an_error_with_the_first_reasons_and_can_be_mended(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of the 10 entries for .*set can be used \(key-0000: number: 0 ünwan"):
        build(tmp_path / "set", make=Maker(rejects=tuple(range(10))))
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["rejected.jsonl"]
    assert len((tmp_path / "set" / "rejected.jsonl").read_text().splitlines()) == 10
    with pytest.raises(ValueError, match=r"none of the 0 entries for .* can be used \(there were none\)"):
        build(tmp_path / "empty", 0)
    assert len(ShardSet.open(build(tmp_path / "set"))) == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a.b"}, r"data set name 'a\.b' may hold only letters"),
        ({"per_shard": 0}, "per_shard=0 must be at least 1"),
        ({"processes": 0}, "processes=0 must be at least 1"),
        ({"rows": [*items(3), Item(1)]}, "key 'key-0001' occurs twice"),
    ],
)
def test_what_readers_would_mix_up_is_refused_before_anything_is_written(tmp_path: Path, values, message: str) -> None:
    arguments = {"name": "demo", "rows": items(), "per_shard": 4, "processes": 1, **values}
    with pytest.raises(ValueError, match=message):
        build_shards(tmp_path / "set", make=Maker(), meta={}, **arguments)
    assert not list(tmp_path.iterdir())


class _Named:
    def __init__(self, key: str) -> None:
        self.key = key


@pytest.mark.parametrize("key", ["COCO.train.1", "", "a/b", "ü"])
def test_keys_that_readers_would_split_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"key '{key}' may hold only letters, digits"):
        build_shards(tmp_path / "set", "demo", [_Named("good"), _Named(key)], Maker(), per_shard=4, meta={})


def _fields(rows: Sequence[Item], _: Counter[str]) -> Iterator:
    for row in rows:
        yield row.key, {"json": b"", **({"jpg": b""} if row.number >= 5 else {})}


def _capitals(rows: Sequence[Item], _: Counter[str]) -> Iterator:
    for row in rows:
        yield row.key, {"JPG": b""}


def _forgetful(rows: Sequence[Item], counts: Counter[str]) -> Iterator:
    yield from Maker()(rows[1:], counts)


def test_samples_with_different_fields_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"key 'key-0005' has fields \['jpg', 'json'\], the samples before it \['json"):
        build(tmp_path / "in_a_shard", make=_fields)
    with pytest.raises(ValueError, match=r"shard demo-000001 has fields \['jpg', 'json'\], demo-000000 before it"):
        build(tmp_path / "between_shards", make=_fields, per_shard=5)
    with pytest.raises(ValueError, match=r"key 'key-0000': field 'JPG' is not an extension"):
        build(tmp_path / "capitals", make=_capitals)
    assert not list(tmp_path.glob("*/manifest.json"))
    assert not list(tmp_path.rglob("*.partial-*"))


def test_a_maker_that_forgets_a_row_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"rows without sample or reject: \['key-0000'\]"):
        build(tmp_path / "set", make=_forgetful)


def _build_and_say(folder: str) -> bool:
    seen: list[int] = []
    build(Path(folder), progress=lambda done, _: seen.append(done), make=Maker(seconds=0.05))
    return bool(seen)


def test_of_two_builders_one_works_and_both_get_the_result(tmp_path: Path) -> None:
    here = "tests.unit.datamodules.shards.test_builder"
    code = f"from {here} import _build_and_say as b; print(b({str(tmp_path / 'set')!r}))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert sorted(process.communicate()[0].strip() for process in both) == ["False", "True"]
    assert not (tmp_path / "set" / ".build").exists()


def test_ctrl_c_stops_workers_and_leaves_a_folder_that_goes_on(tmp_path: Path) -> None:
    folder, script = tmp_path / "set", tmp_path / "build.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not commits(folder):
        assert process.poll() is None, "the build ended before it could be stopped"
        time.sleep(0.02)
    workers = _children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    _wait_for_end(workers)
    assert 1 <= len(commits(folder)) < 15
    assert len(ShardSet.open(build(folder, 60, make=Maker(rejects=(3, 8, 9, 10, 11, 41))))) == 54


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*set/\.build/plan\.json'"):
        build(tmp_path / "set")


@pytest.mark.parametrize("content", ["[]", "null", "", "\x00"])
@pytest.mark.parametrize("name", ["manifest.json", ".build/plan.json"])
def test_a_damaged_record_in_the_folder_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        build(tmp_path / "set")


@pytest.mark.parametrize("content", ["", "null", '{"record": 3}', "[" * 100_000])
def test_a_damaged_note_of_a_finished_shard_is_named_and_deleting_it_helps(tmp_path: Path, content: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "set", make=_interrupted)
    note, _ = commits(tmp_path / "set")
    note.write_text(content)
    with pytest.raises(FolderError, match=rf"note {note}.*; delete it and start again: its shard is built again"):
        build(tmp_path / "set")
    note.unlink()
    build(tmp_path / "set")


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("")
    with pytest.raises(NotADirectoryError, match="set is a file; name a folder for the shards"):
        build(tmp_path / "set")
