import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.inspection.verify import verify
from datamodules.shards.reader import ShardSet
from datamodules.sources.pretokenized import PretokenizedConfig, build_pretokenized
from modules.omnimamba.vq import load_image_tokenizer

CODES = np.random.default_rng(0).integers(0, 16384, (9, 256)).tolist()


def entry(row: int = 0, **values: Any) -> dict[str, Any]:
    return {"captions": [f"Bild {row}", "zwei  犬\n"], "tokens": CODES[row], **values}


def write(folder: Path, lines: list[Any], start: str = "") -> Path:
    path = folder / "t2i.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(start + text, encoding="utf-8", newline="")
    return path


def config(folder: Path, **values: Any) -> PretokenizedConfig:
    given = {"annotations": str(folder / "t2i.jsonl"), "out": str(folder / "out"), "processes": 1, "name": "mine"}
    return PretokenizedConfig(**{**given, **values})


def reasons(folder: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]


def test_captions_and_codes_come_back_by_row(tmp_path: Path) -> None:
    lines = [
        entry(0, url="beyond"),
        "",
        entry(1, tokens=[CODES[1]]),
        entry(2, tokens=np.reshape(CODES[2], (16, 16)).tolist()),
    ]
    write(tmp_path, [*lines, " "], start="\ufeff")
    shards = ShardSet.open(build_pretokenized(config(tmp_path, licence="CC0")))
    assert [shards.key(place) for place in range(3)] == [f"mine-0000000{row}" for row in range(3)]
    for place in range(3):
        sample = shards.get(place)
        assert np.frombuffer(sample["vq"], "<u2").tolist() == CODES[place]
        assert json.loads(sample["json"]) == {"captions": [f"Bild {place}", "zwei 犬"], "row": place}
    assert shards.meta["vq"] == {
        "kind": "unknown",
        "fingerprint": None,
        "codebook_size": 16384,
        "tokens_per_image": 256,
    }
    assert (shards.meta["source"], shards.meta["licence"]) == ("pretokenized", "CC0")
    assert shards.meta["annotations"]["file"] == "t2i.jsonl"
    assert verify(tmp_path / "out" / "manifest.json", decode=True).faults == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (entry(tokens=CODES[0][1:]), "wrong number of tokens: 255, not 256"),
        (entry(tokens=[*CODES[0], 1]), "wrong number of tokens: 257, not 256"),
        (entry(tokens=[CODES[0], CODES[1]]), "wrong number of tokens: 512, not 256"),
        (entry(tokens=[]), "wrong number of tokens: 0, not 256"),
        (entry(tokens=[*CODES[0][1:], 16384]), "tokens: [255] is 16384, expected less than 16384"),
        (entry(tokens=[-1, *CODES[0][1:]]), "tokens: [0] is -1, expected at least 0"),
        (entry(tokens=[1.0, *CODES[0][1:]]), "tokens: [0] is 1.0, expected a whole number"),
        (entry(tokens=[True, *CODES[0][1:]]), "tokens: [0] is true, expected a whole number"),
        (entry(tokens=["1", *CODES[0][1:]]), "tokens: [0] is '1', expected a whole number"),
        (entry(tokens=[[1], *CODES[0][1:]]), "tokens: [0] is [1], expected a whole number"),
        (entry(tokens=[10**400, *CODES[0][1:]]), "tokens: [0] is 1000"),
        (entry(tokens=[[[1]]]), "tokens: [0] is [1], expected a whole number"),
        (entry(tokens="1 2 3"), "entry: tokens is '1 2 3', expected a list"),
        (entry(tokens=None), "entry: tokens is null, expected a list"),
        ({"captions": ["a"]}, "entry: tokens is missing"),
        ({"tokens": CODES[0]}, "entry: captions is missing"),
        (entry(captions=[]), "no captions"),
        (entry(captions=["", " \n"]), "no captions"),
        (entry(captions="a dog"), "entry: captions is 'a dog', expected a list"),
        (entry(captions=["a", 3]), "caption is not a text: int"),
        (entry(captions=["a", None]), "caption is not a text: NoneType"),
        (entry(captions=[["a"]]), "caption is not a text: list"),
        ('{"captions": ["half \\ud83d"], "tokens": ' + json.dumps(CODES[0]) + "}", "caption is not valid Unicode"),
        ("[]", "entry: is [], expected an object"),
        ("null", "entry: is null, expected an object"),
        ("{", "line is not valid JSON"),
        ("{" + '"a":{' * 9999, "line is nested too deeply"),
        ('{"captions": ["a"], "tokens": [NaN]}', "line is not valid JSON"),
    ],
)
def test_lines_that_cannot_be_used_are_rejected_with_the_reason(tmp_path: Path, line: Any, reason: str) -> None:
    write(tmp_path, [entry(1), line, entry(2)])
    shards = ShardSet.open(build_pretokenized(config(tmp_path)))
    assert [shards.key(place) for place in range(2)] == ["mine-00000000", "mine-00000002"]
    [found] = reasons(tmp_path)
    assert found.startswith(reason)
    assert shards.meta["counts"] == {"samples": 2, "rejected": 1}


def test_a_byte_that_is_no_unicode_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(1)])
    path.write_bytes(path.read_bytes() + b'\n{"captions": ["\xff"]}\n')
    build_pretokenized(config(tmp_path))
    assert reasons(tmp_path)[0].startswith("'utf-8' codec can't decode byte 0xff")


def test_processes_change_no_byte(tmp_path: Path) -> None:
    write(tmp_path, [entry(row, **({"tokens": []} if row == 4 else {})) for row in range(9)])
    folders = []
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        build_pretokenized(config(tmp_path, out=str(out), processes=processes, per_shard=2))
        folders.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert folders[0] == folders[1]
    assert len(folders[0]) == 5 * 2 + 2


def test_the_image_tokenizer_is_named_in_the_manifest(tmp_path: Path, vq: Path) -> None:
    write(tmp_path, [entry(tokens=[0, 4, 3, 2]), entry(tokens=[0, 5, 3, 2])])
    sizes = {"tokens_per_image": 4, "codebook_size": 5}
    shards = ShardSet.open(build_pretokenized(config(tmp_path, vq=str(vq), **sizes)))
    assert shards.meta["vq"] == {
        "kind": "patch_kmeans",
        "fingerprint": load_image_tokenizer(vq).fingerprint,
        "image_size": 8,
        **sizes,
    }
    assert reasons(tmp_path) == ["tokens: [1] is 5, expected less than 5"]
    for key in sizes:
        with pytest.raises(ValueError, match=rf"{key}=7, but the image tokenizer .*vq\.safetensors has {sizes[key]}"):
            build_pretokenized(config(tmp_path, vq=str(vq), **{**sizes, key: 7}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"none of the 0 entries for .*out can be used"),
        ('\ufeff [{"captions": [], "tokens": []}]', r"t2i\.jsonl holds a JSON list; write one object per line"),
        ("version https://git-lfs.github.com/spec/v1", r"annotations file .*t2i\.jsonl is a git-lfs pointer"),
    ],
)
def test_files_of_another_layout_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, [content])
    with pytest.raises(ValueError, match=message):
        build_pretokenized(config(tmp_path))
    (tmp_path / "t2i.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"annotations file .*t2i\.jsonl does not exist"):
        build_pretokenized(config(tmp_path))


def test_problems() -> None:
    given = {"annotations": "", "out": ""}
    assert PretokenizedConfig(**given).problems() == []
    assert PretokenizedConfig(**given, tokens_per_image=0, codebook_size=65537, per_shard=0).problems() == [
        "per_shard=0 must be at least 1",
        "tokens_per_image=0 must be at least 1",
        "codebook_size=65537 must lie in [1, 65536]: codes are stored as uint16",
    ]
