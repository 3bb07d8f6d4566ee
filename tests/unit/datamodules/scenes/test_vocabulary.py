import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from datamodules.scenes.vocabulary import train_tokenizer
from modules.omnimamba.tokenizer import TextTokenizer

TEXTS = [
    "In: Is there a red circle?\nOut: ",
    "Yes",
    "No",
    "a red circle left of a blue square",
    "two objects: a, b",
] * 3


def test_text_survives_and_known_words_are_one_token(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, tmp_path / "t.json", vocab_size=512)
    tokenizer, library = TextTokenizer(tmp_path / "t.json"), Tokenizer.from_file(str(tmp_path / "t.json"))
    assert len(tokenizer.encode("Yes")) == len(tokenizer.encode(" circle")) == 1
    for text in [*TEXTS, "Völlig  anderes\n\tüber 37 Äpfel 🍎"]:
        assert library.decode(tokenizer.encode(text)) == text


def test_the_vocabulary_stays_within_its_limit(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, tmp_path / "t.json", vocab_size=260)
    assert len(TextTokenizer(tmp_path / "t.json")) == 260 + 10


def test_another_process_trains_the_same_tokenizer(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, tmp_path / "here.json", vocab_size=300)
    code = (
        "import json, pathlib, sys; from datamodules.scenes.vocabulary import train_tokenizer; "
        "train_tokenizer(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), vocab_size=300)"
    )
    there = tmp_path / "there.json"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "true"}
    subprocess.run([sys.executable, "-c", code, json.dumps(TEXTS), str(there)], check=True, env=environment)
    assert there.read_bytes() == (tmp_path / "here.json").read_bytes()


def test_a_vocabulary_smaller_than_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size=256 must be at least 257"):
        train_tokenizer(TEXTS, tmp_path / "t.json", vocab_size=256)
