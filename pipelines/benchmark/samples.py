"""Makes the data of the data benchmark: random captions, codes and photos of typical size."""

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.scenes.vocabulary import train_tokenizer
from datamodules.shards.builder import build_shards
from datamodules.shards.reader import Sample
from modules.omnimamba.tokenizer import TextTokenizer


@dataclass(frozen=True)
class _Row:
    key: str
    number: int


@dataclass(frozen=True)
class _Maker:
    fields: Callable[[int], dict[str, bytes]]

    def __call__(self, rows: Sequence[_Row], counts: Counter[str]) -> Iterator[Sample]:
        for row in rows:
            yield row.key, self.fields(row.number)


def built(folder: Path, count: int, fields: Callable[[int], dict[str, bytes]], per_shard: int) -> Path:
    """The manifest of a set of ``count`` samples, built first if it is missing."""
    rows = [_Row(f"sample-{number:08d}", number) for number in range(count)]
    meta = {"source": "benchmark", "fields": fields.__name__}
    cores = os.cpu_count() or 1
    return build_shards(folder, "bench", rows, _Maker(fields), per_shard=per_shard, meta=meta, processes=cores)


_WORDS = ("a", "the", "two", "red", "small", "man", "woman", "dog", "on", "with", "street", "table", "riding", "of")


def _caption(number: int) -> str:
    generator = np.random.default_rng(number)
    return " ".join(generator.choice(_WORDS, 11))


def make_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of the captions, trained first if it is missing in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    if not path.is_file():
        train_tokenizer((_caption(i) for i in range(2000)), path, vocab_size=400)
    return TextTokenizer(path)


def t2i_sample(number: int) -> dict[str, bytes]:
    """Five captions, and 256 codes of 16384."""
    codes = np.random.default_rng(number).integers(0, 16384, 256).astype("<u2")
    captions = [_caption(5 * number + j) for j in range(5)]
    return {"json": json.dumps({"captions": captions}).encode(), "vq": codes.tobytes()}


def mmu_sample(number: int) -> dict[str, bytes]:
    """A conversation about a photo."""
    return {"json": _talk(number), "jpg": photo(number)}


@lru_cache
def _few_bytes() -> dict[str, bytes]:
    return {"json": _talk(0), "jpg": _jpeg(np.zeros((8, 8, 3), np.uint8))}


def deep_sample(_number: int) -> dict[str, bytes]:
    """The same small sample every time; only their number matters."""
    return _few_bytes()


def _talk(number: int) -> bytes:
    values = (f"<image>\n{_caption(number)}?", " ".join(_caption(number + k) for k in range(8)))
    turns = [{"from": who, "value": value} for who, value in zip(("human", "gpt"), values, strict=True)]
    return json.dumps({"conversations": turns}).encode()


def photo(number: int) -> bytes:
    """A JPEG of 640 x 480 pixels and about 150 KB, the average of COCO: coarse shapes with fine grain."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 255, (12, 16, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.float32)
    return _jpeg(np.clip(smooth + generator.normal(0, 13, smooth.shape), 0, 255).astype(np.uint8))


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
