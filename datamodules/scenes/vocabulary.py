"""Trains a text tokenizer for the small language of the scenes, in well under a second."""

import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from modules.omnimamba.tokenizer import END_OF_TEXT


def train_tokenizer(texts: Iterable[str], path: Path, *, vocab_size: int) -> None:
    """Train a byte-level BPE on ``texts`` and write it to ``path``; any text survives encoding and decoding.

    ``vocab_size`` includes the 256 bytes and ``<|endoftext|>``. The vocabulary is smaller if ``texts`` has too few
    merges.

    Raises:
        ValueError: ``vocab_size`` is too small for the bytes.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size={vocab_size} must be at least 257: 256 bytes and {END_OF_TEXT}")
    # threads used here would make the library warn in every data worker that is forked later
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
