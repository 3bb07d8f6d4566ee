import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.shards.reader import ShardSet
from datamodules.sources.common import BadEntryError
from datamodules.sources.llava import LlavaConfig, build_llava
from datamodules.sources.mmu import checked_turns


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def entry(image: str = "coco/a.jpg", *values: str):
    return {"id": "a", "image": image, "conversations": turns(*(values or ("<image>\nWhat?", "That.")))}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    (tmp_path / "images" / "coco").mkdir(parents=True)
    pixels = np.arange(3 * 20 * 30, dtype=np.uint8).reshape(20, 30, 3)
    Image.fromarray(pixels).save(tmp_path / "images" / "coco" / "a.jpg", quality=30)
    Image.fromarray(pixels).save(tmp_path / "images" / "coco" / "b.png")
    (tmp_path / "images" / "coco" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    return tmp_path


def build(folder: Path, entries, **values) -> ShardSet:
    (folder / "mix.json").write_text(json.dumps(entries))
    return ShardSet.open(build_llava(config(folder, **values)))


def config(folder: Path, **values) -> LlavaConfig:
    paths = {"annotations": "mix.json", "images": "images", "out": "out"}
    return LlavaConfig(**{**{key: str(folder / name) for key, name in paths.items()}, "processes": 1, **values})


def test_conversations_and_original_bytes(official: Path) -> None:
    one, two = entry(), entry("coco/a.jpg", "<image>\nWhat?", "That.", "And?", "This.")
    shards = build(official, [one, {**two, "id": 17, "model": "x"}], name="mix")
    assert [shards.key(place) for place in (0, 1)] == ["mix-00000000", "mix-00000001"]
    assert json.loads(shards.get(1)["json"]) == {
        "id": "17",
        "conversations": two["conversations"],
        "image": "coco/a.jpg",
        "source": "mix",
    }
    assert shards.get(0)["jpg"] == (official / "images" / "coco" / "a.jpg").read_bytes()
    assert shards.meta["counts"] == {"samples": 2, "rejected": 0}
    assert shards.meta["annotations"]["file"] == "mix.json"


def test_the_question_may_be_empty_or_come_before_the_image(official: Path) -> None:
    shards = build(official, [entry("coco/a.jpg", "<image>", "A picture."), entry("coco/a.jpg", "What?\n<image>", "x")])
    assert len(shards) == 2


def test_other_formats_become_jpeg_once_and_are_counted(official: Path) -> None:
    shards = build(official, [entry("coco/b.png"), entry()])
    assert shards.get(0)["jpg"].startswith(b"\xff\xd8\xff")
    assert shards.meta["counts"] == {"samples": 2, "rejected": 0, "converted_from_png": 1}


def test_what_cannot_be_used_is_written_down(official: Path) -> None:
    text_only = {"id": "t", "conversations": turns("Hello", "Hi")}
    shards = build(official, [text_only, entry(), entry("coco/broken.jpg"), entry("coco/none.jpg"), "text"])
    assert [shards.key(place) for place in range(len(shards))] == ["llava-00000001"]
    lines = [json.loads(line) for line in (official / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["llava-00000000", "llava-00000002", "llava-00000003", "llava-00000004"]
    assert lines[1]["reason"].startswith("image does not decode: coco/broken.jpg (")
    assert [line["reason"] for line in (lines[0], *lines[2:])] == [
        "no image",
        "image does not exist: coco/none.jpg",
        "entry is not an object: str",
    ]
    assert shards.meta["counts"] == {"samples": 1, "rejected": 4}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("../secret.jpg", "image lies outside the image folder: ../secret.jpg"),
        ("coco/../../secret.jpg", "image lies outside the image folder: coco/../../secret.jpg"),
        ("/etc/passwd", "image lies outside the image folder: /etc/passwd"),
        ("a" * 5000, f"image cannot be read: {'a' * 120}... (5000 characters) (File name too long)"),
        ("coco", "image is not a regular file: coco"),
        ("coco/a.jpg/b.jpg", "image cannot be read: coco/a.jpg/b.jpg (Not a directory)"),
        ("a\0b.jpg", "image cannot be read: a\0b.jpg (embedded null byte)"),
        (["coco/a.jpg"], "image is not a text: list"),
        (17, "image is not a text: int"),
        ("", "no image"),
    ],
)
def test_names_that_are_no_picture_of_the_folder(official: Path, image, reason: str) -> None:
    (official / "secret.jpg").write_bytes((official / "images" / "coco" / "a.jpg").read_bytes())
    shards = build(official, [entry(image), entry()])
    assert len(shards) == 1
    assert json.loads((official / "out" / "rejected.jsonl").read_text())["reason"] == reason


def test_a_failing_disk_stops_the_build_instead_of_leaving_samples_out(official: Path, monkeypatch) -> None:
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "b.png":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(OSError, match="Input/output error"):
        build(official, [entry(), entry("coco/b.png")])
    monkeypatch.undo()
    assert len(build(official, [entry(), entry("coco/b.png")])) == 2


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "conversations must be a non-empty list"),
        (turns("<image>\nWhat?", "That.", "And?"), "in pairs"),
        (turns("<image>", "x")[::-1], "turn 0 is not from 'human'"),
        ([*turns("<image>", "x"), *turns("a", "b")[::-1]], "turn 2 is not from 'human'"),
        ([turns("<image>")[0], {"from": "gpt"}], "turn 1 is not a text: NoneType"),
        ([turns("<image>")[0], {"from": "gpt", "value": ["x"]}], "turn 1 is not a text: list"),
        ([turns("<image>")[0], "x"], "turn 1 is not from 'gpt'"),
        (turns("What?", "That."), "turn 0 holds <image> 0 times"),
        (turns("<image><image>", "That."), "turn 0 holds <image> 2 times"),
        (turns("<image>", "x", "<image>\nAnd?", "y"), "turn 2 holds <image> 1 times"),
        (turns("<image>", " \n"), "turn 1 is empty"),
        (turns("<image>", "half \udc80"), "turn 1 is not valid Unicode: surrogates not allowed"),
    ],
)
def test_faults_of_conversations(given, reason: str) -> None:
    with pytest.raises(BadEntryError, match=reason):
        checked_turns(given)


def test_lrv_instruct_has_one_question_and_answer_an_entry(official: Path) -> None:
    (official / "images" / "2392588.jpg").write_bytes((official / "images" / "coco" / "a.jpg").read_bytes())
    lrv = {"image_id": "2392588", "question": "Is there a zebra?", "answer": "No.", "task": "existence"}
    given = [
        lrv,
        {**lrv, "image_id": 2392588, "question": "Look: <image> A zebra?"},
        {**lrv, "image_id": "2392588.jpg"},
        {**lrv, "answer": ""},
        {**lrv, "image_id": "../2392588"},
        {**lrv, "answer": 3},
    ]
    shards = build(official, given)
    contents = [json.loads(shards.get(place)["json"]) for place in range(len(shards))]
    assert {content["image"] for content in contents} == {"2392588.jpg"}
    assert contents[0]["conversations"] == turns("<image>\nIs there a zebra?", "No.")
    assert contents[1]["conversations"] == turns("Look: <image> A zebra?", "No.")
    reasons = [json.loads(line)["reason"] for line in (official / "out" / "rejected.jsonl").read_text().splitlines()]
    assert reasons == [
        "turn 1 is empty",
        "image lies outside the image folder: ../2392588.jpg",
        "answer is not a text: int",
    ]


@pytest.mark.parametrize("name", ["mix.jsonl", "mix.json"])
def test_entries_may_come_a_line_each(official: Path, name: str) -> None:
    lines = [json.dumps(entry("coco/a.jpg", "<image>", "Grün\u2028"), ensure_ascii=False), "", json.dumps(entry())]
    (official / name).write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    shards = ShardSet.open(build_llava(config(official, annotations=str(official / name))))
    assert len(shards) == 2
    assert json.loads(shards.get(0)["json"])["conversations"][1]["value"] == "Grün\u2028"
    (official / name).write_text("{}\n{'a'}")
    with pytest.raises(ValueError, match=r"line 2 of conversations file .*mix\.jsonl?, .*, is not valid JSON"):
        build_llava(config(official, annotations=str(official / name)))


def test_missing_files_and_other_layouts_are_named(official: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"conversations file .*mix\.json does not exist"):
        build_llava(config(official))
    for content, message in (
        ('{"a": 1}', r"none of the 1 entries for .*out can be used \(llava-00000000: no image\)"),
        ('{\n"a": 1\n}', r"mix\.json, which does not begin with \[ and so must hold one JSON value per line, is not"),
        ("version https://git-lfs.github.com/spec/v1", r"mix\.json is a git-lfs pointer, not the file itself"),
        ("[" * 100_000, r"conversations file .*mix\.json is nested too deeply to be read"),
        ("[]", r"none of the 0 entries .* can be used \(there were none\)"),
    ):
        (official / "mix.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            build_llava(config(official))
    (official / "mix.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"mix\.json is not UTF-8 \('utf-8' codec"):
        build_llava(config(official))
    assert LlavaConfig(annotations="", images="", out="", per_shard=0).problems() == ["per_shard=0 must be at least 1"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, "0"), (17, "17"), ("a", "a"), ("\ud83d", None), (1.5, None), (True, None), (["a"], None)],
)
def test_ids_are_texts_or_whole_numbers(official: Path, given, kept: str | None) -> None:
    if kept is not None:
        assert json.loads(build(official, [{**entry(), "id": given}]).get(0)["json"])["id"] == kept
        return
    build(official, [{**entry(), "id": given}, entry()])
    reason = json.loads((official / "out" / "rejected.jsonl").read_text())["reason"]
    assert reason.startswith("id is not valid Unicode" if given == "\ud83d" else "id is not a text: ")


def test_pictures_that_git_lfs_or_macos_left_and_postscript_are_named(official: Path) -> None:
    folder = official / "images" / "coco"
    (folder / "pointer.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (folder / "._a.jpg").write_bytes(b"\0\5\x16\7" + bytes(40))
    (folder / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    build(official, [entry(), *(entry(f"coco/{name}.jpg") for name in ("pointer", "._a", "page"))])
    reasons = [json.loads(line)["reason"] for line in (official / "out" / "rejected.jsonl").read_text().splitlines()]
    assert "run `git lfs pull`" in reasons[0]
    assert "what macOS stores about another file" in reasons[1]
    assert "no picture of a known kind" in reasons[2]
