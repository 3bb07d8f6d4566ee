"""The text tokenizer: a local ``tokenizer.json`` and the published model's ten special tokens."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from typing_extensions import TypedDict

from modules.reading import read_json

PAD = "[PAD]"
SPECIAL_TOKENS = (
    PAD, "<|soi|>", "<|eoi|>", "<|sot|>", "<|eot|>", "<|t2i|>", "<|mmu|>", "<|soc|>", "<|eoc|>", "<|lvg|>",
)  # fmt: skip
END_OF_TEXT = "<|endoftext|>"
_OURS = (*SPECIAL_TOKENS, END_OF_TEXT)
_UNKNOWN = "\U0010fffd"
"""A character that no vocabulary holds."""


class _TokenizerFile(TypedDict):
    model: dict[str, Any]


class TextTokenizer:
    """Turns text into ids and back. The special tokens have the ten ids after the file's own vocabulary.

    The order of the special tokens is the published model's, so its embedding rows mean the same here. Text that spells
    a special token is plain text: only the code places special tokens.
    """

    def __init__(self, path: str | Path) -> None:
        """Read ``path``, a ``tokenizer.json``; its truncation, padding and dropout are ignored.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or has no ``<|endoftext|>``, the token that ends an answer; or text can
                become a special token.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"tokenizer file {path} does not exist. Name a local tokenizer.json "
                "(GPT-NeoX's for the 1.3B model; `python -m pipelines.prepare scenes` trains one for its data)."
            )
        self.path = path
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
        self._tokenizer = _read(path)
        if self._tokenizer.token_to_id(END_OF_TEXT) is None:
            raise ValueError(f"tokenizer {path} has no {END_OF_TEXT} token, which ends every answer; add it")
        _add_special_tokens(self._tokenizer)
        self._check()
        ids = {token: self._id(token) for token in _OURS}
        self.pad, self.soi, self.eoi = ids[PAD], ids["<|soi|>"], ids["<|eoi|>"]
        self.sot, self.eot = ids["<|sot|>"], ids["<|eot|>"]
        self.t2i, self.mmu = ids["<|t2i|>"], ids["<|mmu|>"]
        self.end_of_text = ids[END_OF_TEXT]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _add_special_tokens(self._tokenizer)  # what it does is not pickled

    def _check(self) -> None:
        """Raise ValueError if ids are not those of embedding rows, or text can become a special token."""
        if sorted(self._tokenizer.get_vocab().values()) != list(range(len(self))):
            raise ValueError(
                f"tokenizer {self.path} has {len(self)} tokens, but not the ids 0 to {len(self) - 1}; number them so"
            )
        for text in (*_OURS, _UNKNOWN):
            try:
                ids = self.encode(text)
            except Exception as error:  # the library raises nothing narrower
                raise ValueError(f"tokenizer {self.path} cannot encode the text {text!r}: {error}") from error
            if found := {self.token(each) for each in ids} & set(_OURS):
                raise ValueError(
                    f"tokenizer {self.path} turns the text {text!r} into the special token {', '.join(found)}; use a "
                    "vocabulary of bytes, such as GPT-NeoX's, where only the code places special tokens"
                )

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        assert found is not None
        return int(found)

    def __len__(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with nothing added at either end, and without special tokens even if it spells one."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids`` without special tokens, stripped."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def token(self, number: int) -> str:
        """The token with this id, as in the vocabulary: Ġ stands for a space before a word."""
        return self._tokenizer.id_to_token(number) or "?"

    @cached_property
    def spellings(self) -> frozenset[str]:
        """How the special tokens are written: the file's and ours."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special) | set(_OURS)


def _read(path: Path) -> Tokenizer:
    content: Any = read_json(path, _TokenizerFile, "tokenizer file")
    # left over from training or inference elsewhere; they would cut or pad every text, or change it each time
    content["truncation"] = content["padding"] = None
    if "dropout" in content["model"]:
        content["model"]["dropout"] = None
    try:
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"tokenizer file {path} cannot be read ({error}); it is damaged or not a tokenizer.json"
        ) from error


def _add_special_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([END_OF_TEXT, *SPECIAL_TOKENS])
    tokenizer.encode_special_tokens = True  # text that spells one is split like any other
