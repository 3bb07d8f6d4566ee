import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from callbacks.measures.records import RecordBook, drop_result, read_results, write_result
from modules.files import step_name


def record(sample: str) -> dict[str, str]:
    return {"sample_id": sample, "split": "s", "prompt": "é?\n"}


def test_step_name_sorts() -> None:
    assert step_name(20) == "step-000000020"


def test_all_ranks_are_read(tmp_path: Path) -> None:
    for rank in (0, 1):
        book = RecordBook(tmp_path / "m", rank)
        book.open({"suffix": "x"})
        book.append([record(f"{rank}a")])
        book.append([record(f"{rank}b")])
    assert RecordBook(tmp_path / "m", 0).read() == {key: record(key) for key in ("0a", "0b", "1a", "1b")}
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["protocol.json", "rank0.jsonl", "rank1.jsonl"]


def test_a_half_written_last_line_is_no_record_and_is_cut_off(tmp_path: Path) -> None:
    book = RecordBook(tmp_path / "m")
    book.open({})
    book.append([record("a"), record("b")])
    whole = book.path.read_bytes()
    book.path.write_bytes(whole + whole[:10])
    assert book.read().keys() == {"a", "b"}
    book.open({})
    assert book.path.read_bytes() == whole
    # complete but for its newline: cannot be told from half a line
    book.path.write_bytes(whole[:-1])
    book.open({})
    assert book.read().keys() == {"a"}


def test_records_of_another_protocol_are_refused(tmp_path: Path) -> None:
    RecordBook(tmp_path / "m").open({"suffix": "x", "limit": 3})
    RecordBook(tmp_path / "m", 1).open({"limit": 3, "suffix": "x"})
    with pytest.raises(ValueError, match=r"another protocol \(suffix: 'x' there, 'y' now\).*--fresh"):
        RecordBook(tmp_path / "m").open({"suffix": "y", "limit": 3})
    with pytest.raises(ValueError, match=r"limit: 3 there, None now"):
        RecordBook(tmp_path / "m").require_protocol({"suffix": "x"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 of .*rank0.jsonl is damaged"),
        ("[]", r"row: is \[\], expected an object"),
        ("{}", "row: sample_id is missing"),
    ],
)
def test_broken_lines(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "rank0.jsonl").write_text(f"{line}\n{json.dumps(record('a'))}\n")
    with pytest.raises(ValueError, match=message):
        RecordBook(tmp_path).read()


def test_results_of_other_measures_stay(tmp_path: Path) -> None:
    assert read_results(tmp_path / "step") == {}
    write_result(tmp_path / "step", "pope", {"metrics": {"f1": 1.0}})
    write_result(tmp_path / "step", "gqa", {"metrics": {"accuracy": 0.5}})
    write_result(tmp_path / "step", "pope", {"metrics": {"f1": 0.25}})
    assert read_results(tmp_path / "step") == {
        "pope": {"metrics": {"f1": 0.25}},
        "gqa": {"metrics": {"accuracy": 0.5}},
    }
    assert sorted(path.name for path in (tmp_path / "step").iterdir()) == [".results.json.lock", "results.json"]


def test_dropping_a_result_that_is_not_there_takes_no_lock(tmp_path: Path) -> None:
    drop_result(tmp_path, "pope")
    (tmp_path / "results.json").write_text('{"gqa": {}}')
    drop_result(tmp_path, "pope")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


WRITER = """
import sys, pathlib
from callbacks.measures.records import drop_result, write_result
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
sys.stdin.read()  # both begin together
for i in range(15):
    write_result(folder, f"{name}{i}", {"n": i})
    write_result(folder, f"{name}_dropped", {"n": i})
    drop_result(folder, f"{name}_dropped")
"""


def test_processes_that_write_results_at_once_keep_each_others(tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    words = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*words, name], cwd=root, stdin=subprocess.PIPE) for name in ("a", "b")]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert read_results(tmp_path) == {f"{name}{i}": {"n": i} for name in ("a", "b") for i in range(15)}


def test_two_different_records_of_a_sample_are_refused_and_repeats_are_not(tmp_path: Path) -> None:
    for rank in (0, 1):
        book = RecordBook(tmp_path / "m", rank)
        book.open({})
        book.append([record("a"), record("a"), record(f"{rank}")])
    assert book.read() == {key: record(key) for key in ("a", "0", "1")}
    book.append([record("a") | {"raw": "no"}])
    with pytest.raises(ValueError, match=r"m holds two different records of sample a; discard the records: .*--fresh"):
        book.read()


def test_records_without_their_protocol_are_refused(tmp_path: Path) -> None:
    """Else they would be scored as if made under the protocol of whoever scores them."""
    book = RecordBook(tmp_path / "m")
    book.open({"suffix": "x"})
    (book.folder / "protocol.json").unlink()
    book.open({"suffix": "y"})  # there is no record yet
    book.append([record("a")])
    (book.folder / "protocol.json").unlink()
    asked: list[Callable[[dict[str, str]], object]] = [book.open, book.require_protocol, book.is_of_other_weights]
    for ask in asked:
        with pytest.raises(ValueError, match=r"m holds records but no protocol\.json, .*; discard the records:"):
            ask({"suffix": "y"})
    assert not (book.folder / "protocol.json").exists()
    book.discard()
    book.open({"suffix": "y"})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, r"line 2 of .*rank0\.jsonl is damaged \(row: raw is missing\); delete the file to rebuild it"),
        ({"raw": None}, r"line 2 of .*rank0\.jsonl is damaged \(row: raw is null, expected a text\)"),
        ({"raw": "yes", "codes": "12"}, r"line 2 of .*rank0\.jsonl is damaged \(row: codes is '12', expected a list\)"),
    ],
)
def test_a_record_holds_what_its_measure_needs(tmp_path: Path, more: dict[str, object], message: str) -> None:
    book = RecordBook(tmp_path / "m", keys={"raw": str, "codes": list})
    book.open({})
    book.append([record("a") | {"raw": "yes", "codes": [1]}, record("b") | more])
    with pytest.raises(ValueError, match=message):
        book.read()


def test_records_of_other_weights_are_told_from_those_of_another_protocol(tmp_path: Path) -> None:
    book = RecordBook(tmp_path / "m")
    book.open({"suffix": "x", "weights": "a"})
    assert not book.is_of_other_weights({"suffix": "x", "weights": "a"})
    assert book.is_of_other_weights({"suffix": "x", "weights": "b"})
    assert not book.is_of_other_weights({"suffix": "y", "weights": "b"})
    book.discard()
    assert not book.is_of_other_weights({"suffix": "x", "weights": "b"})


def test_a_kill_while_records_are_discarded_leaves_none_without_their_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would pass for records of whatever is evaluated next."""
    for rank in (0, 1):
        book = RecordBook(tmp_path / "m", rank)
        book.open({"weights": "a"})
        book.append([record(f"{rank}a")])

    def killed(folder: Path) -> None:
        (folder / "protocol.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        book.discard()
    assert book.read() == {}
    monkeypatch.undo()
    book.discard()
    assert not (tmp_path / "m").exists()
    book.discard()  # nothing there is nothing to do


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "protocol.json").write_text("{")
    with pytest.raises(ValueError, match=r"protocol\.json is damaged .*; discard the records: pipelines"):
        RecordBook(tmp_path).open({})
    for content in ("[1]", "{", "[" * 100_000, "\udcff"):
        (tmp_path / "results.json").write_text(content, errors="surrogateescape")
        with pytest.raises(ValueError, match=r"results\.json is damaged .*; delete it, and score again"):
            read_results(tmp_path)
