import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from datamodules.images import mmu_pixels, read_image, to_tensor
from datamodules.scenes.prepare import PreparedPaths, PrepareScenesConfig, prepare_scenes
from datamodules.shards.reader import ShardSet
from modules.omnimamba.vq import load_image_tokenizer
from pipelines.prepare import __main__ as prepare
from tests.unit.datamodules.writing import payload_offset
from tests.verbs import call

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedPaths:
    config = PrepareScenesConfig(
        folder=str(tmp_path_factory.mktemp("prepared") / "data"),
        images=20,
        val_images=4,
        codebook_size=64,
        per_shard=8,
    )
    return prepare_scenes(config, say=lambda _: None)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a tool; gives exit code, output and errors."""

    def tool(*words: str | Path) -> tuple[int, str, str]:
        code = call(prepare, *words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return tool


def test_verify_finds_nothing_in_whole_data(prepared: PreparedPaths, run: Run) -> None:
    for manifest, shards in ((prepared.t2i, 3), (prepared.mmu_captions, 3)):
        code, out, err = run("verify", manifest, "--sha256", "--decode", "--processes", "1")
        assert (code, err) == (0, "")
        assert f"{manifest}: {shards} shards, 20 samples, " in out
        assert "checked: sizes, indexes, sha256, decode; 0 faults" in out


def test_verify_lists_every_fault_and_exits_with_one(prepared: PreparedPaths, run: Run, tmp_path: Path) -> None:
    staged = ShardSet.open(prepared.mmu_captions, tmp_path / "cache")
    first, _, last = sorted((tmp_path / "cache").glob("*.tar"), key=lambda path: path.name.split("-", 1)[1])
    content = bytearray(first.read_bytes())
    content[payload_offset(prepared.mmu_captions, 2, "jpg") + 5] ^= 1
    first.write_bytes(content)
    os.truncate(last, 512)
    code, out, _ = run("verify", prepared.mmu_captions, "--cache", tmp_path / "cache", "--sha256", "--processes", "2")
    assert code == 1
    names = [staged.shard_of(0), staged.shard_of(19)]
    assert f"{names[0]}, key {staged.key(2)}: .jpg is not the one that was written" in out
    assert f"{names[0]}: has sha256" in out
    assert f"{names[1]}: has 512 bytes" in out
    assert f"copy or build again: {', '.join(names)}" in out
    assert (
        run("verify", prepared.mmu_captions, "--cache", tmp_path / "cache", "--processes", "1")[1].count("has 512") == 1
    )


def test_stats_show_a_table(prepared: PreparedPaths, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")  # as narrow as a pipe may look
    code, out, err = run(
        "stats", prepared.mmu_instruct, "--tokenizer", prepared.tokenizer, "--length", "60", "--processes", "1"
    )
    assert (code, err) == (0, "")
    rows = {line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")}
    assert rows == {
        "bytes of .jpg",
        "bytes of .json",
        "image width",
        "image height",
        "questions per conversation",
        "ids per text",
    }
    assert "every text at 60 ids: " in out
    assert "repeated pictures: " in out
    assert "unreadable: 0\n" in out
    assert "texts that spell a special token: 0\n" in out


def test_stats_as_json_agree_with_the_data(prepared: PreparedPaths, run: Run) -> None:
    code, out, _ = run(
        "stats", prepared.t2i, "--tokenizer", prepared.tokenizer, "--json", "--processes", "1",
        "--evaluation", prepared.scenes / "annotations" / "captions_train2014.json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert (found["samples"], found["shards"]) == (20, 3)
    assert found["captions"]["mean"] == 5
    assert found["payloads"]["vq"]["total"] == 20 * 512
    assert found["padding"]["positions_fixed"] == 329
    assert found["overlap"]["by_name"] == 20
    validation = prepared.scenes / "annotations" / "captions_val2014.json"
    _, out, _ = run("stats", prepared.t2i, "--json", "--processes", "1", "--evaluation", validation)
    assert json.loads(out)["overlap"] == {"by_name": 0, "by_content": None, "keys": []}


def test_overlap_with_pictures_is_shown(prepared: PreparedPaths, run: Run) -> None:
    _, out, _ = run("stats", prepared.mmu_captions, "--evaluation", prepared.scenes / "train2014", "--processes", "1")
    assert "pictures also used in evaluation: 20 by name, 20 by content" in out
    _, out, _ = run("stats", prepared.mmu_captions, "--evaluation", prepared.scenes / "val2014", "--processes", "1")
    assert "pictures also used in evaluation: 0 by name, 0 by content" in out


def test_peek_shows_a_conversation_with_its_labels(prepared: PreparedPaths, run: Run, tmp_path: Path) -> None:
    shards = ShardSet.open(prepared.mmu_instruct)
    sample = shards.get(3)
    code, out, err = run(
        "peek", prepared.mmu_instruct, shards.key(3), "--tokenizer", prepared.tokenizer, "--out", tmp_path / "a.jpg"
    )
    assert (code, err) == (0, "")
    assert f"{shards.key(3)}: sample 3, in shard {shards.shard_of(3)}" in out
    for turn in json.loads(sample["json"])["conversations"]:
        assert json.dumps(turn["value"]) in out
    assert (tmp_path / "a.jpg").read_bytes() == sample["jpg"]
    rows = [line.split() for line in out.partition("position      id   label  token\n")[2].splitlines()]
    assert [row[3] for row in rows[:4]] == ["<|mmu|>", "<|soi|>", "<|eoi|>", "<|sot|>"]
    labelled = [row for row in rows if row[0].isdigit() and row[2] != "-"]
    assert labelled
    assert all(row[1] == row[2] for row in labelled)
    assert labelled[-1][3] == "<|endoftext|>"
    assert rows[-1][-1] == "[PAD]"
    assert rows[-1][2] == "more"


def test_peek_saves_another_kind_of_picture_when_asked(prepared: PreparedPaths, run: Run, tmp_path: Path) -> None:
    assert run("peek", prepared.mmu_captions, "0", "--out", tmp_path / "a.png")[0] == 0
    expected = mmu_pixels(ShardSet.open(prepared.mmu_captions).get(0)["jpg"], 64)
    assert to_tensor(read_image(tmp_path / "a.png")).equal(expected)


def test_peek_draws_codes(prepared: PreparedPaths, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("peek", prepared.t2i, "7")
    assert code == 0
    assert "no picture is stored; name an image tokenizer with --vq" in out
    key = ShardSet.open(prepared.t2i).key(7)
    assert run("peek", prepared.t2i, key, "--vq", prepared.vq)[0] == 0
    vq = load_image_tokenizer(prepared.vq)
    with Image.open(tmp_path / f"{key}.png") as picture:
        codes = vq.encode(to_tensor(picture)[None])
    stored = ShardSet.open(prepared.t2i).get(7)["vq"]
    assert codes[0].numpy().astype("<u2").tobytes() == stored


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "nowhere.json"], "manifest nowhere.json does not exist"),
        (["stats", "nowhere.json"], "manifest nowhere.json does not exist"),
        (["peek", "nowhere.json", "0"], "manifest nowhere.json does not exist"),
        (
            ["verify", "http://127.0.0.1:9/manifest.json", "--processes", "1"],
            "http://127.0.0.1:9/manifest.json could not",
        ),
        (["peek", "{t2i}", "scenes-train-9"], "'scenes-train-9' is neither a key nor a number below 20; the nearest"),
        (["stats", "{t2i}", "--length", "0"], "length=0 must be at least 1"),
        (["stats", "{t2i}", "--processes", "0"], "processes=0 must be at least 1"),
        (["stats", "{t2i}", "--evaluation", "nowhere.json"], "evaluation file nowhere.json does not exist"),
        (["peek", "{t2i}", "0", "--tokenizer", "nowhere.json"], "tokenizer file nowhere.json does not exist"),
    ],
)
def test_what_cannot_be_used_is_an_error_with_exit_code_two(
    prepared: PreparedPaths, run: Run, words: Sequence[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.shards.fetch.time.sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    code, _, err = run(*(word.format(t2i=prepared.t2i) for word in words))
    assert code == 2
    assert err.startswith("error: ")
    assert message in err


def test_signs_that_a_terminal_library_could_take_for_its_own_are_shown(
    tmp_path: Path, prepared: PreparedPaths, run: Run
) -> None:
    from tests.unit.datamodules.writing import write_shards

    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    talk = json.dumps({"conversations": [{"value": "[/b] [red]?"}, {"value": "[PAD] \u00e9"}]}).encode()
    manifest = write_shards(tmp_path, "a", [("a", {"json": talk, "jpg": buffer.getvalue()})], per_shard=1, meta={})
    code, out, _ = run("peek", manifest, "a", "--tokenizer", prepared.tokenizer, "--out", tmp_path / "a.jpg")
    assert code == 0
    assert "[/b] [red]?" in out
    assert "[PAD] é" in out
