import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.encode import PromptTemplate
from datamodules.inspection.peek import codes_of, nearest_keys, peek, picture_of, tokens
from datamodules.shards.reader import ShardSet
from modules.omnimamba.tokenizer import TextTokenizer
from tests.unit.datamodules.writing import write_shards


def shown(content: dict[str, object], tokenizer: TextTokenizer, **options: int) -> list[tuple[str, str | None]]:
    """Text and label of every position, the label as text."""
    found = tokens(content, tokenizer, PromptTemplate(), **{"mmu_length": 18, "caption_length": 4, **options})
    assert [token.position for token in found] == list(range(len(found)))
    texts = {token.id: token.text for token in found}
    return [(token.text, None if token.label is None else texts[token.label]) for token in found]


def test_a_sample_is_found_by_key_and_by_number(mmu_manifest: Path) -> None:
    shards = ShardSet.open(mmu_manifest)
    for wanted in ("talk-6", "6"):
        sample = peek(shards, wanted)
        assert (sample.index, sample.key, sample.shard) == (6, "talk-6", "mmu-000001")
        assert sample.content["id"] == 6
        assert picture_of(sample) == ("jpg", shards.get(6)["jpg"])
        assert codes_of(sample) is None


def test_codes_of_a_t2i_sample(t2i_manifest: Path) -> None:
    sample = peek(ShardSet.open(t2i_manifest), "image-9")
    codes = codes_of(sample)
    assert codes is not None
    assert codes.tolist() == [9, 10, 11, 12]
    assert picture_of(sample) is None


@pytest.mark.parametrize(
    ("wanted", "near"), [("talk-99", "talk-9"), ("alk-7", "talk-7"), ("11", "talk-"), ("", "talk-")]
)
def test_an_unknown_key_names_those_like_it(mmu_manifest: Path, wanted: str, near: str) -> None:
    with pytest.raises(
        ValueError, match=f"{wanted!r} is neither a key nor a number below 11; the nearest keys are.*{near}"
    ):
        peek(ShardSet.open(mmu_manifest), wanted)


def test_the_nearest_keys_share_beginning_and_end() -> None:
    keys = np.array([f"llava-{n:05d}".encode() for n in range(2000)])
    assert nearest_keys(keys, "lava-01234")[0] == "llava-01234"
    assert nearest_keys(keys, "llav-00123")[0] == "llava-00123"
    assert nearest_keys(keys, "llava-x1234")[0] == "llava-01234"
    assert nearest_keys(keys, "llava-01234-and-more")[0] == "llava-01234"


def test_labels_stand_beside_the_ids_that_they_are(tokenizer: TextTokenizer) -> None:
    content = {"conversations": [{"value": "<image>\nQ"}, {"value": "A B"}]}
    text = [("Ċ" if sign == "\n" else "Ġ" if sign == " " else sign, None) for sign in "In: Q\nOut: "]
    assert shown(content, tokenizer) == [
        ("<|mmu|>", None),
        ("<|soi|>", None),
        ("<|eoi|>", None),
        ("<|sot|>", None),
        *text,
        ("A", "A"),
        ("Ġ", "Ġ"),
        ("B", "B"),
        ("<|endoftext|>", "<|endoftext|>"),
        ("<|eot|>", None),
        ("[PAD]", None),
        ("[PAD]", None),
    ]


def test_captions_have_no_labels(tokenizer: TextTokenizer) -> None:
    content = {"captions": ["abcdef", "xy"]}
    assert shown(content, tokenizer, caption=1) == [
        (text, None) for text in ("<|t2i|>", "<|sot|>", "[PAD]", "[PAD]", "x", "y", "<|eot|>", "<|soi|>", "<|eoi|>")
    ]
    with pytest.raises(ValueError, match="caption 2 of 2; they are counted from 0"):
        shown(content, tokenizer, caption=2)
    with pytest.raises(ValueError, match="neither conversations nor captions"):
        shown({}, tokenizer)


def test_text_that_is_no_object_is_named(tmp_path: Path) -> None:
    bad = [("a", {"json": b"{"}), ("b", {"json": json.dumps([1]).encode()})]
    shards = ShardSet.open(write_shards(tmp_path, "bad", bad, per_shard=9, meta={}))
    with pytest.raises(ValueError, match=r"a: its \.json is not JSON"):
        peek(shards, "a")
    with pytest.raises(ValueError, match=r"b: its \.json holds list, not an object"):
        peek(shards, "b")
