"""A T2I shard set as memory maps: codes and tokenized captions, read a whole micro-batch at a time.

The first process that needs the table builds it, once, from the shards and the text tokenizer. It holds nothing else,
so it may be deleted and is then rebuilt. Every row ends in a seal of its content and its place, so damage is noticed,
and so are rows that were shifted or exchanged.

Shapes: N samples, M captions of all samples, B batch, I image tokens, C caption ids, W words of a row with its seal.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Len
from numpy.typing import NDArray
from typing_extensions import TypedDict

from datamodules.encode import encode_caption
from datamodules.shards.folders import locked_folder
from datamodules.shards.reader import DamagedShardError, ShardSet
from datamodules.stored import captions_of, codes_of, content_of
from modules.files import new_folder
from modules.omnimamba.tokenizer import TextTokenizer
from modules.reading import read_json
from modules.seeds import keyed_hashes, keyed_seed

_VERSION = 3
_ROWS = 8192
"""Rows converted at once while a table is built."""
_Shape = Annotated[list[Annotated[int, Ge(1)]], Len(2, 2)]


class _Meta(TypedDict):
    name: str
    codes: _Shape
    captions: _Shape
    caption_type: Literal["<u2", "<u4"]
    largest_code: Annotated[int, Ge(0)]
    first_sha256: str


class _Seal:
    """The last word of every row of a file: minus a weighted sum of the others and of a number for the row's place.

    The weights and the numbers depend on the table's name and the file. A sum costs about twice an exclusive or, and
    unlike it notices words that changed places.
    """

    def __init__(self, table: str, file: str, words: int, kind: str) -> None:
        """``words`` is W; words and sums are of the unsigned type ``kind`` and wrap around."""
        self._type = np.dtype(kind)
        # odd, so that a change of a single word always changes the sum
        numbers = keyed_hashes(keyed_seed(table, file), np.arange(words + 1)) | np.uint64(1)
        self._weights = numbers[:-1].astype(self._type)
        self._weights[-1] = 1
        self._step, self._shift = numbers[-1], np.uint64(64 - 8 * self._type.itemsize)

    def left(self, rows: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
        """The sum (B,) of the whole ``rows`` (B, W) and their ``places`` (B,): 0 for intact ones."""
        sums: NDArray[Any] = np.einsum("ij,j->i", rows, self._weights)
        sums += ((places + 1).astype(np.uint64) * self._step >> self._shift).astype(self._type)
        return sums

    def on(self, rows: NDArray[Any], first: int) -> NDArray[Any]:
        """``rows`` (B, W-1) with their seals, (B, W); their places start at ``first``."""
        sealed = np.concatenate([rows, np.zeros((len(rows), 1), self._type)], axis=1)
        sealed[:, -1] = -self.left(sealed, np.arange(first, first + len(rows)))
        return sealed


class T2ITable:
    """Random access to the samples of a T2I shard set."""

    def __init__(self, folder: Path) -> None:
        """Map the files that `open_table` built."""
        self.folder = folder
        try:
            meta = read_json(folder / "meta.json", _Meta, "description")
            if meta["name"] != folder.name:
                raise ValueError(f"it was made as {meta['name']}")
            kind = meta["caption_type"]
            self.largest_code = meta["largest_code"]
            self._codes = _mapped(folder / "codes.bin", "<u2", meta["codes"])
            self._captions = _mapped(folder / "captions.bin", kind, meta["captions"])
            self._code_seal = _Seal(folder.name, "codes.bin", meta["codes"][1], "<u2")
            self._caption_seal = _Seal(folder.name, "captions.bin", meta["captions"][1], kind)
            self._first = np.fromfile(folder / "first.bin", "<i8")
            if hashlib.sha256(self._first.tobytes()).hexdigest() != meta["first_sha256"]:
                raise ValueError("first.bin is not what was written")
        except (OSError, ValueError) as error:
            raise DamagedShardError(
                f"T2I table {folder} cannot be read ({error}); delete it, and it is rebuilt from the shards"
            ) from error

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._codes)

    @property
    def image_tokens(self) -> int:
        """Codes of each sample."""
        return int(self._codes.shape[1]) - 1

    def codes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """VQ codes (B, I).

        Raises:
            DamagedShardError: the table on disk is damaged.
        """
        return self._whole(self._codes, self._code_seal, indices, "codes.bin")

    def captions(self, indices: NDArray[np.int64], choice: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Ids (B, C+5) of one caption per sample: number ``choice`` (B,), modulo the number of captions.

        Raises:
            DamagedShardError: the table on disk is damaged.
        """
        first = self._first[indices]
        counts = (self._first[indices + 1] - first).astype(np.uint64)
        chosen = first + (choice % counts).astype(np.int64)
        return self._whole(self._captions, self._caption_seal, chosen, "captions.bin")

    def _whole(self, rows: NDArray[Any], seal: _Seal, chosen: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        found = rows[chosen]
        broken = seal.left(found, chosen) != 0
        if broken.any():
            row = int(chosen[broken][0])
            raise DamagedShardError(
                f"T2I table {self.folder / name}, row {row}: not what was written. Delete the folder and start again: "
                "the table is rebuilt from the shards"
            )
        return found[:, :-1].astype(np.int64)


def open_table(
    shards: ShardSet,
    tokenizer: TextTokenizer,
    caption_length: int,
    folder: Path,
    report: Callable[[str], None] = lambda _: None,
) -> T2ITable:
    """The table of ``shards`` under ``folder``, built first if it is missing; other processes wait for it.

    ``report`` is called if the table must be built.

    Its name holds the fingerprints of data and tokenizer and the caption length, so tables cannot be confused.

    Raises:
        OSError: the folder cannot be written.
        DamagedShardError: the table exists but is damaged.
        ValueError: a sample has no captions, or not as many codes as the others.
    """
    kind = f"t2i-v{_VERSION}-{shards.fingerprint[:16]}-{tokenizer.fingerprint[:16]}-{caption_length}"
    path = folder / kind
    if not path.is_dir():
        with locked_folder(path):
            if not path.is_dir():
                report(f"making the table of {len(shards)} T2I samples in {path}, once")
                with new_folder(path) as partial:
                    _make(partial, kind, shards, tokenizer, caption_length)
    return T2ITable(path)


def _make(folder: Path, name: str, shards: ShardSet, tokenizer: TextTokenizer, caption_length: int) -> None:
    caption_type: Literal["<u2", "<u4"] = "<u2" if len(tokenizer) <= 1 << 16 else "<u4"
    caption_seal = _Seal(name, "captions.bin", caption_length + 6, caption_type)
    code_seal, first, width, largest = None, [0], 0, 0
    with (folder / "codes.bin").open("wb") as codes_file, (folder / "captions.bin").open("wb") as captions_file:
        for start in range(0, len(shards), _ROWS):
            codes, captions, before = [], [], first[-1]
            for key, row, texts in _samples(shards, range(start, min(start + _ROWS, len(shards)))):
                width = width or len(row)
                if len(row) != width:
                    raise ValueError(
                        f"key {key} has {len(row)} codes, the samples before it another number; prepare the data again "
                        "with a single VQ tokenizer"
                    )
                codes.append(row)
                captions += [encode_caption(tokenizer, text, caption_length) for text in texts]
                first.append(first[-1] + len(texts))
            code_seal = code_seal or _Seal(name, "codes.bin", width + 1, "<u2")
            block = np.stack(codes)
            largest = max(largest, int(block.max()))
            codes_file.write(code_seal.on(block, start).tobytes())
            captions_file.write(caption_seal.on(np.array(captions, caption_type), before).tobytes())
    starts = np.array(first, "<i8")
    starts.tofile(folder / "first.bin")
    meta: _Meta = {
        "name": name,
        "codes": [len(shards), width + 1],
        "captions": [first[-1], caption_length + 6],
        "caption_type": caption_type,
        "largest_code": largest,
        "first_sha256": hashlib.sha256(starts.tobytes()).hexdigest(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _samples(shards: ShardSet, indices: range) -> Iterator[tuple[str, NDArray[Any], list[str]]]:
    """Key, codes and captions of each sample."""
    for i in indices:
        fields = shards.get(i)
        try:
            yield shards.key(i), codes_of(fields["vq"]), captions_of(content_of(fields["json"]))
        except ValueError as error:
            raise ValueError(
                f"shard {shards.shard_of(i)}, key {shards.key(i)} {error}; prepare the data again without it"
            ) from error


def _mapped(path: Path, kind: str, shape: list[int]) -> NDArray[Any]:
    """A memory map of the whole file.

    Raises:
        ValueError: the file does not have the size of ``shape``.
    """
    expected = shape[0] * shape[1] * np.dtype(kind).itemsize
    if path.stat().st_size != expected:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {expected}")
    return np.memmap(path, kind, mode="r", shape=tuple(shape))
