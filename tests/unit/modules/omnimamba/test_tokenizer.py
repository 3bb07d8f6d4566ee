"""The text tokenizer's special tokens and errors."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from modules.omnimamba.tokenizer import END_OF_TEXT, PAD, SPECIAL_TOKENS, TextTokenizer

BYTES = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)}


def write(path: Path, vocabulary: dict[str, int]) -> Path:
    Tokenizer(models.BPE(vocabulary, [])).save(str(path))
    return path


def change(path: Path, **values: Any) -> Path:
    """One id per byte, with a few words of two letters, and with ``values`` in the file."""
    words = {"th": len(BYTES) + 1, "en": len(BYTES) + 2}
    made = Tokenizer(models.BPE({END_OF_TEXT: 0, **BYTES, **words}, [("t", "h"), ("e", "n")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_tokens(["   "])  # as GPT-NeoX has it: added, but not special
    made.add_special_tokens([END_OF_TEXT, "<|padding|>"])
    content = json.loads(made.to_str())
    content["model"] |= values.pop("model", {})
    path.write_text(json.dumps(content | values))
    return path


def test_special_tokens_follow_the_vocabulary_in_the_published_order(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(write(tmp_path / "t.json", {END_OF_TEXT: 0, "x": 1, "y": 2}))
    assert len(tokenizer) == 3 + 10
    assert SPECIAL_TOKENS[0] == "[PAD]"
    assert (tokenizer.pad, tokenizer.soi, tokenizer.eoi, tokenizer.sot, tokenizer.eot) == (3, 4, 5, 6, 7)
    assert (tokenizer.t2i, tokenizer.mmu, tokenizer.end_of_text) == (8, 9, 0)


def test_special_tokens_are_left_out_of_text(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(write(tmp_path / "t.json", {END_OF_TEXT: 0, "x": 1}))
    assert tokenizer.decode([tokenizer.mmu, 1, tokenizer.end_of_text]) == "x"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist\. Name a local tokenizer\.json"):
        TextTokenizer(tmp_path / "none.json")


def test_a_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no <\|endoftext\|> token"):
        TextTokenizer(write(tmp_path / "t.json", {"x": 0}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"t\.json is not valid JSON"),
        ("not json", r"t\.json is not valid JSON"),
        ("[" * 100_000, r"t\.json is nested too deeply"),
        ("{}", r"t\.json: model is missing"),
        ('{"model": null}', r"t\.json: model is null, expected an object"),
        ('{"model": {"type": "BPE"}}', r"t\.json cannot be read \(.*\); it is damaged or not a tokenizer\.json"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}}', r"t\.json cannot be read"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"t\.json is a git-lfs pointer"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match=f"^tokenizer file .*{message}"):
        TextTokenizer(tmp_path / "t.json")


TEXT = "then a   tent, in the den"
GOLDEN = ["th", "en", "Ġ", "a", "   ", "t", "en", "t", ",", "Ġ", "i", "n", "Ġ", "th", "e", "Ġ", "d", "en"]
PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": END_OF_TEXT}
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"truncation": TRUNCATION},
        {"truncation": {**TRUNCATION, "direction": "Left", "stride": 9}},  # the library would abort on such a stride
        {"truncation": "no truncation at all"},
        {"padding": {**PADDING, "strategy": {"Fixed": 40}}},
        {"padding": {**PADDING, "strategy": "BatchLongest", "pad_to_multiple_of": 64}},
        {"truncation": TRUNCATION, "padding": {**PADDING, "strategy": {"Fixed": 40}}, "model": {"dropout": 0.9}},
    ],
)
def test_truncation_padding_and_dropout_of_the_file_change_nothing(tmp_path: Path, values: dict[str, Any]) -> None:
    tokenizer = TextTokenizer(change(tmp_path / "t.json", **values))
    assert [tokenizer.token(each) for each in tokenizer.encode(TEXT)] == GOLDEN
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("copied", [False, True])
def test_text_that_spells_a_special_token_is_plain_text(tmp_path: Path, copied: bool) -> None:
    tokenizer = TextTokenizer(change(tmp_path / "t.json"))
    if copied:  # as a data worker gets it
        tokenizer = pickle.loads(pickle.dumps(tokenizer))
    special = {tokenizer.pad, tokenizer.eot, tokenizer.end_of_text, tokenizer.mmu, tokenizer.t2i}
    for spelling in (*SPECIAL_TOKENS, END_OF_TEXT, "<|padding|>"):
        ids = tokenizer.encode(f"a {spelling} b{spelling}")
        assert not special & set(ids)
        assert "".join(tokenizer.token(each) for each in ids) == f"aĠ{spelling}Ġb{spelling}"
        assert spelling in tokenizer.spellings
    assert [tokenizer.token(each) for each in tokenizer.encode(TEXT)] == GOLDEN
    assert "   " not in tokenizer.spellings


def test_our_tokens_that_the_file_has_as_ordinary_ones_are_special_too(tmp_path: Path) -> None:
    made = Tokenizer.from_file(str(change(tmp_path / "t.json")))
    made.add_tokens([PAD])
    made.save(str(tmp_path / "t.json"))
    tokenizer = TextTokenizer(tmp_path / "t.json")
    assert tokenizer.token(tokenizer.pad) == PAD
    assert tokenizer.pad not in tokenizer.encode(PAD)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            models.WordLevel({END_OF_TEXT: 0, "x": 1}, "x"),
            r"turns the text '<\|endoftext\|>' into the special token <\|en",
        ),
        (
            models.Unigram([(END_OF_TEXT, 0.0), ("x", -1.0)], 1),
            r"turns the text '<\|endoftext\|>' into the special tok",
        ),
        (
            models.BPE({END_OF_TEXT: 0, "x": 1}, [], unk_token=END_OF_TEXT),
            r"into the special token <\|endoftext\|>; use",
        ),
        (models.WordLevel({END_OF_TEXT: 0}, "x"), r"cannot encode the text '\[PAD\]': .*Missing"),
        (models.BPE({END_OF_TEXT: 0, "x": 2}, []), r"has 12 tokens, but not the ids 0 to 11; number them so"),
    ],
)
def test_vocabularies_in_which_text_becomes_control_are_refused(tmp_path: Path, model: Any, message: str) -> None:
    Tokenizer(model).save(str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match=message):
        TextTokenizer(tmp_path / "t.json")
