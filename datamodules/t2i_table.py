"""A T2I shard set as memory maps: codes and tokenized captions, read a whole micro-batch at a time.

The first process that needs the table builds it, once, from the shards and the text tokenizer. It holds nothing else,
so it may be deleted and is then rebuilt. Every row ends in a seal, so damage is noticed.

Shapes: N samples, M captions of all samples, B batch, I image tokens, C caption ids.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.encode import encode_caption
from datamodules.shards.folders import locked_folder
from datamodules.shards.reader import DamagedShardError, ShardSet
from datamodules.stored import captions_of, codes_of, content_of
from modules.files import new_folder
from modules.omnimamba.tokenizer import TextTokenizer

_VERSION = 2
_SEAL = 0x5A17
"""The exclusive or of all words of an intact row. A row of zeros does not have it."""
_ROWS = 8192
"""Rows converted at once while a table is built."""


class T2ITable:
    """Random access to the samples of a T2I shard set."""

    def __init__(self, folder: Path) -> None:
        """Map the files that `open_table` built."""
        self.folder = folder
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            self.largest_code = int(meta["largest_code"])
            self._codes = _mapped(folder / "codes.bin", "<u2", meta["codes"])
            self._captions = _mapped(folder / "captions.bin", meta["caption_type"], meta["captions"])
            self._first = np.fromfile(folder / "first.bin", "<i8")
            if hashlib.sha256(self._first.tobytes()).hexdigest() != meta["first_sha256"]:
                raise ValueError("first.bin is not what was written")
        except (OSError, ValueError, KeyError, TypeError) as error:
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
        return self._whole(self._codes, indices, "codes.bin")

    def captions(self, indices: NDArray[np.int64], choice: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Ids (B, C+5) of one caption per sample: number ``choice`` (B,), modulo the number of captions.

        Raises:
            DamagedShardError: the table on disk is damaged.
        """
        first = self._first[indices]
        counts = (self._first[indices + 1] - first).astype(np.uint64)
        return self._whole(self._captions, first + (choice % counts).astype(np.int64), "captions.bin")

    def _whole(self, rows: NDArray[Any], chosen: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        found = rows[chosen]
        broken = np.bitwise_xor.reduce(found, axis=1) != _SEAL
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
                    _make(partial, shards, tokenizer, caption_length)
    return T2ITable(path)


def _make(folder: Path, shards: ShardSet, tokenizer: TextTokenizer, caption_length: int) -> None:
    caption_type = "<u2" if len(tokenizer) <= 1 << 16 else "<u4"
    first, codes_shape, largest = [0], (0, 0), 0
    with (folder / "codes.bin").open("wb") as codes_file, (folder / "captions.bin").open("wb") as captions_file:
        for start in range(0, len(shards), _ROWS):
            codes, captions = [], []
            for key, row, texts in _samples(shards, range(start, min(start + _ROWS, len(shards)))):
                codes.append(row)
                if len(codes[-1]) != len(codes[0]) or codes_shape[1] not in (0, len(codes[-1]) + 1):
                    raise ValueError(
                        f"key {key} has {len(row)} codes, the samples before it another number; prepare the data again "
                        "with a single VQ tokenizer"
                    )
                captions += [encode_caption(tokenizer, text, caption_length) for text in texts]
                first.append(first[-1] + len(texts))
            block = np.stack(codes)
            largest = max(largest, int(block.max()))
            codes_shape = (codes_shape[0] + len(block), block.shape[1] + 1)
            codes_file.write(_sealed(block).tobytes())
            captions_file.write(_sealed(np.array(captions, caption_type)).tobytes())
    starts = np.array(first, "<i8")
    starts.tofile(folder / "first.bin")
    meta = {
        "codes": codes_shape,
        "captions": (first[-1], caption_length + 6),
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


def _sealed(rows: NDArray[Any]) -> NDArray[Any]:
    """``rows`` (N, W) with one more word each, (N, W+1), which makes the exclusive or of the row the seal."""
    words = np.bitwise_xor.reduce(rows, axis=1) ^ rows.dtype.type(_SEAL)
    return np.concatenate([rows, words[:, None]], axis=1)


def _mapped(path: Path, kind: str, shape: tuple[int, int]) -> NDArray[Any]:
    """A memory map of the whole file.

    Raises:
        ValueError: the file does not have the size of ``shape``.
    """
    expected = int(np.prod(shape)) * np.dtype(kind).itemsize
    if path.stat().st_size != expected:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {expected}")
    return np.memmap(path, kind, mode="r", shape=tuple(shape))
