"""The text tokenizer's special tokens and errors."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from modules.omnimamba.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, TextTokenizer


def write(path: Path, vocabulary: dict[str, int]) -> Path:
    Tokenizer(models.WordLevel(vocabulary, unk_token="x")).save(str(path))
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


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer file .*t\.json cannot be read \(.*\); it is damaged"):
        TextTokenizer(tmp_path / "t.json")
