import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.inspection.evaluation_images import digest, picture_name, read_evaluation
from datamodules.inspection.findings import SurveyConfig
from datamodules.inspection.survey import Padding, Summary, survey
from modules.omnimamba.tokenizer import TextTokenizer
from tests.unit.datamodules.writing import write_shards


def jpeg_of(shade: int, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, shade).save(buffer, "JPEG")
    return buffer.getvalue()


def talk(image: str, *turns: tuple[str, str]) -> bytes:
    values = [text for turn in turns for text in turn]
    return json.dumps({"image": image, "conversations": [{"value": value} for value in values]}).encode()


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Texts of 14, 27, 104 and 73 ids, one per byte: ``In: Q\\nOut: `` has 11, the ends of answer and text one each."""
    samples = [
        ("a", {"json": talk("coco/000000000007.jpg", ("<image>\nQ", "A")), "jpg": jpeg_of(10, (40, 30))}),
        ("b", {"json": talk("vg/8.jpg", ("Q", "A"), ("q", "")), "jpg": jpeg_of(20, (80, 30))}),
        ("c", {"json": talk("coco/000000000007.jpg", ("Q", "A" * 91)), "jpg": jpeg_of(10, (40, 30))}),
        ("d", {"json": talk("vg/9.jpg", ("Q" * 60, "A")), "jpg": jpeg_of(30, (20, 50))}),
    ]
    return write_shards(tmp_path / "mmu", "talks", samples, per_shard=3, meta={})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Captions of 2, 4 and 6 ids, and two samples with the same codes."""
    codes = np.array([1, 2, 3, 4], "<u2").tobytes()
    samples = [
        ("a", {"json": json.dumps({"captions": ["ab", "abcd"], "image_id": 7}).encode(), "vq": codes}),
        ("b", {"json": json.dumps({"captions": ["abcdef"], "image_id": 8}).encode(), "vq": codes}),
    ]
    return write_shards(tmp_path / "t2i", "pictures", samples, per_shard=3, meta={})


def test_conversations_are_measured(talks: Path, tokenizer: TextTokenizer) -> None:
    config = SurveyConfig(tokenizer=str(tokenizer.path), length=50, image_positions=100)
    found = survey(talks, config=config)
    assert (found.samples, found.shards, found.unreadable) == (4, 2, 0)
    assert found.width == Summary(mean=45, median=40, p90=pytest.approx(68), max=80, total=180)
    assert found.height is not None
    assert found.height.max == 50
    assert found.turns == Summary(mean=1.25, median=1, p90=pytest.approx(1.7), max=2, total=5)
    assert found.captions is None
    assert found.text_ids is not None
    assert (found.text_ids.total, found.text_ids.max) == (14 + 27 + 104 + 73, 104)
    # the third loses the end of its answer; the fourth's question is too long by itself
    kept = (14 + 27 + 50) / 3
    assert found.padding == Padding(
        length=50,
        others=104,
        cut=1,
        no_room=1,
        text_waste=pytest.approx(1 - kept / 50),
        sequence_waste=pytest.approx((50 - kept) / 154),
        positions_fixed=154,
        positions_packed=pytest.approx(104 + kept),
    )


@pytest.mark.parametrize("measured", [False, True])
def test_texts_that_spell_a_special_token_are_counted(tmp_path: Path, tokenizer: TextTokenizer, measured: bool) -> None:
    config = SurveyConfig(tokenizer=str(tokenizer.path) if measured else "")
    captions = json.dumps({"captions": ["a <|endoftext|>", "b", "<|t2i|>[PAD]"]}).encode()
    pictures = write_shards(tmp_path / "t2i", "p", [("a", {"json": captions, "vq": b"\0\0"})], per_shard=3, meta={})
    assert survey(pictures, config=config).spelled == 2
    told = [
        (f"{n}", {"json": talk("a.jpg", (question, answer)), "jpg": jpeg_of(10, (4, 4))})
        for n, (question, answer) in enumerate([("Q", "A [PAD] B"), ("<|eot|>?", "A"), ("Q [pad]", "<endoftext>")])
    ]
    assert survey(write_shards(tmp_path / "mmu", "m", told, per_shard=3, meta={}), config=config).spelled == 2


@pytest.mark.parametrize("captions", [None, "abc", [3], ["a", None], {"a": 1}, [""]])
def test_captions_of_another_kind_are_unreadable(tmp_path: Path, captions: object) -> None:
    samples = [("a", {"json": json.dumps({"captions": captions}).encode(), "vq": b"\0\0"})]
    found = survey(write_shards(tmp_path / "t2i", "p", samples, per_shard=3, meta={}))
    assert (found.unreadable, found.captions) == (1, None)


def test_repeated_pictures_are_counted(talks: Path, pictures: Path) -> None:
    found = survey(talks)
    assert (found.repeated_contents, found.repeated_names) == (1, 1)
    found = survey(pictures)
    assert (found.repeated_contents, found.repeated_names) == (1, 0)


def test_captions_are_measured(pictures: Path, tokenizer: TextTokenizer) -> None:
    found = survey(pictures, config=SurveyConfig(tokenizer=str(tokenizer.path), length=5))
    assert found.captions == Summary(mean=1.5, median=1.5, p90=pytest.approx(1.9), max=2, total=3)
    assert found.text_ids == Summary(mean=4, median=4, p90=pytest.approx(5.6), max=6, total=12)
    assert found.width is None
    assert found.padding is not None
    assert (found.padding.cut, found.padding.others, found.padding.positions_fixed) == (1, 9, 14)
    assert found.padding.text_waste == pytest.approx(4 / 15)
    assert found.payloads["vq"] == Summary(mean=8, median=8, p90=8, max=8, total=16)


def test_the_published_lengths_are_the_default(talks: Path, pictures: Path, tokenizer: TextTokenizer) -> None:
    config = SurveyConfig(tokenizer=str(tokenizer.path))
    for manifest, length, positions in ((talks, 449, 449 + 4 + 729), (pictures, 68, 68 + 5 + 4)):
        padding = survey(manifest, config=config).padding
        assert padding is not None
        assert (padding.length, padding.positions_fixed) == (length, positions)


def test_without_a_tokenizer_texts_are_not_measured(talks: Path) -> None:
    found = survey(talks)
    assert found.text_ids is None
    assert found.padding is None


def test_processes_and_a_cache_change_nothing(talks: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    config = SurveyConfig(tokenizer=str(tokenizer.path))
    told: list[tuple[int, int]] = []
    alone = survey(talks, config=config, progress=lambda *count: told.append(count))
    assert told == [(1, 2), (2, 2)]
    assert survey(talks, tmp_path / "cache", config, processes=2) == alone


def test_unreadable_samples_are_counted(tmp_path: Path) -> None:
    samples = [
        ("a", {"json": b"{", "jpg": jpeg_of(1, (8, 8))}),
        ("b", {"json": talk("x", ("Q", "A")), "jpg": b"none"}),
        ("c", {"json": b"[]", "jpg": jpeg_of(2, (8, 8))}),
        ("d", {"json": talk("x", ("Q", "A")), "jpg": jpeg_of(3, (8, 8))}),
    ]
    assert survey(write_shards(tmp_path, "bad", samples, per_shard=9, meta={})).unreadable == 3


def test_broken_rules_are_refused(talks: Path) -> None:
    with pytest.raises(ValueError, match="length=0 must be at least 1; image_positions=-1 must not be negative"):
        survey(talks, config=SurveyConfig(length=0, image_positions=-1))


def test_pictures_that_are_evaluated_on_are_found_by_name(talks: Path, pictures: Path, tmp_path: Path) -> None:
    questions = tmp_path / "coco_pope_random.json"
    questions.write_text('{"question_id": 1, "image": "COCO_val2014_000000000007.jpg", "text": "?", "label": "no"}\n')
    evaluation = read_evaluation([questions])
    overlap = survey(talks, evaluation=evaluation).overlap
    assert overlap is not None
    assert (overlap.by_name, overlap.by_content, overlap.keys) == (2, None, ["a", "c"])
    overlap = survey(pictures, evaluation=evaluation).overlap
    assert overlap is not None
    assert (overlap.by_name, overlap.by_content, overlap.keys) == (1, None, ["a"])


def test_renamed_pictures_are_found_by_content(talks: Path, tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "renamed.JPG").write_bytes(jpeg_of(20, (80, 30)))
    (tmp_path / "folder" / "9.png").write_bytes(b"another of the same name")
    overlap = survey(talks, evaluation=read_evaluation([tmp_path / "folder"])).overlap
    assert overlap is not None
    assert (overlap.by_name, overlap.by_content, overlap.keys) == (1, 1, ["b", "d"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"image": "COCO_val2014_000000000042.jpg"}\n\n{"image": "b.jpg"}\n', {"000000000042", "b"}),
        ('{"image": "COCO_val2014_000000000042.jpg"}\n', {"000000000042"}),
        ('{"image": "b.jpg", "text": "a\u2028b"}\n{"image": "c.jpg"}\r\n', {"b", "c"}),  # a line separator ends no line
        ('{"201": {"imageId": "n161313", "question": "?"}, "202": {"imageId": "8"}}', {"n161313", "8"}),
        ('{"images": [{"id": 1, "file_name": "COCO_val2014_000000000042.jpg"}], "annotations": []}', {"000000000042"}),
        ('{"questions": [{"image_id": 42, "question": "?"}]}', {"000000000042"}),
        ('[{"image": "a/b/c.png"}]', {"c"}),
    ],
)
def test_the_known_question_files_are_read(tmp_path: Path, text: str, names: set[str]) -> None:
    (tmp_path / "questions.json").write_text(text)
    found = read_evaluation([tmp_path / "questions.json"])
    assert set(found.names.tolist()) == {digest(name.encode()) for name in names}
    assert not found.contents.size


def test_places_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"evaluation file .*none\.json does not exist"):
        read_evaluation([tmp_path / "none.json"])
    with pytest.raises(ValueError, match="names no picture; give a folder of pictures"):
        read_evaluation([tmp_path])
    (tmp_path / "questions.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"evaluation file .*questions\.json is not UTF-8"):
        read_evaluation([tmp_path / "questions.json"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"questions\.json names no picture; give a folder"),
        ("[1, 2]", r"entry 0 of evaluation file .*questions\.json: is 1, expected an object"),
        ("3", r"evaluation file .*questions\.json: is 3, expected a list"),
        ("{", r"evaluation file .*questions\.json is not valid JSON"),
        ('{"image": "a.jpg"}\n{"image": }\n', r"line 2 of evaluation file .* is not valid JSON"),
        ('{"image": "a.jpg"}\n\n{"image": null}\n', r"line 3 of evaluation file .*: image is null, expected a text"),
        ('{"image": "a.jpg", "image": "b.jpg"}\n', r"the key 'image' is there twice"),
        ('[{"image": ["a.jpg"]}]', r"entry 0 of evaluation file .*: image is \['a.jpg'\], expected a text"),
        ('[{"image": "a.jpg"}, {"text": "?"}]', r"entry 1 of evaluation file .* names no picture; .* file_name, image"),
        ('{"201": {"imageId": "8"}, "202": {"imageId": 8.5}}', r"entry 202 of .*: imageId is 8\.5, expected a text"),
        ('{"questions": [{"image_id": true}]}', r"entry 0 of .*: image_id is true, expected a whole number"),
        (
            '{"images": [{"file_name": "\\ud800.jpg"}]}',
            r"entry 0 of .*: file_name is '.ud800\.jpg', expected valid Uni",
        ),
    ],
)
def test_an_entry_that_names_no_picture_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "questions.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_evaluation([tmp_path / "questions.json"])


@pytest.mark.parametrize("text", ['{"image": "a.jpg"}\n{"image": "a.png"}\n', '[\n{"image": "a.jpg"}\n]\n'])
def test_a_byte_order_mark_is_no_part_of_a_question_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "questions.json").write_text(text, encoding="utf-8-sig")
    assert read_evaluation([tmp_path / "questions.json"]).names.tolist() == [digest(b"a")]


def test_linked_folders_are_searched_and_files_of_macos_are_not(tmp_path: Path) -> None:
    for name in ("disk/a.jpg", "disk/._a.jpg", "folder/__MACOSX/._b.jpg", "folder/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder" / "part").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "folder")
    found = read_evaluation([tmp_path / "folder"])
    assert set(found.names.tolist()) == {digest(b"a"), digest(b"b")}
    assert set(found.contents.tolist()) == {digest(b"disk/a.jpg"), digest(b"folder/b.png")}


def test_names_of_coco_are_one_and_of_others_their_own() -> None:
    assert {picture_name(name) for name in (7, "train2017/000000000007.jpg", "COCO_train2014_000000000007.jpg")} == {
        "000000000007"
    }
    assert picture_name("vg/VG_100K/7.jpg") == "7"


def test_names_that_are_not_unicode_are_pictures_too(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    assert len(read_evaluation([tmp_path]).names) == 1
