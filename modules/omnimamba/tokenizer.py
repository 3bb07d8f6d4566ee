"""The text tokenizer: a local ``tokenizer.json`` and the published model's ten special tokens."""

import hashlib
from pathlib import Path

from tokenizers import Tokenizer

PAD = "[PAD]"
SPECIAL_TOKENS = (
    PAD, "<|soi|>", "<|eoi|>", "<|sot|>", "<|eot|>", "<|t2i|>", "<|mmu|>", "<|soc|>", "<|eoc|>", "<|lvg|>",
)  # fmt: skip
END_OF_TEXT = "<|endoftext|>"


class TextTokenizer:
    """Turns text into ids and back. The special tokens have the ten ids after the file's own vocabulary.

    The order of the special tokens is the published model's, so its embedding rows mean the same here.
    """

    def __init__(self, path: str | Path) -> None:
        """Read ``path``, a ``tokenizer.json``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the vocabulary has no ``<|endoftext|>``, the token that ends an answer.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"tokenizer file {path} does not exist. Name a local tokenizer.json "
                "(GPT-NeoX's for the 1.3B model; `python -m pipelines.prepare scenes` trains one for its data)."
            )
        self.path = path
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(
                f"tokenizer file {path} cannot be read ({error}); it is damaged or not a tokenizer.json"
            ) from error
        if self._tokenizer.token_to_id(END_OF_TEXT) is None:
            raise ValueError(f"tokenizer {path} has no {END_OF_TEXT} token, which ends every answer; add it")
        self._tokenizer.add_special_tokens([END_OF_TEXT, *SPECIAL_TOKENS])
        ids = {token: self._id(token) for token in (*SPECIAL_TOKENS, END_OF_TEXT)}
        self.pad, self.soi, self.eoi = ids[PAD], ids["<|soi|>"], ids["<|eoi|>"]
        self.sot, self.eot = ids["<|sot|>"], ids["<|eot|>"]
        self.t2i, self.mmu = ids["<|t2i|>"], ids["<|mmu|>"]
        self.end_of_text = ids[END_OF_TEXT]

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        assert found is not None
        return int(found)

    def __len__(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with nothing added at either end."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids`` without special tokens, stripped."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()
