"""Captions with existing VQ codes, one JSON object per line, to T2I shards."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from annotated_types import Ge, Lt
from typing_extensions import TypedDict

from datamodules.shards.builder import Progress, Rejected
from datamodules.shards.reader import Sample
from datamodules.sources.common import BadEntryError, SourceConfig, as_json, clean_captions, processes_of
from datamodules.sources.split import build_parts
from datamodules.sources.t2i import describe_vq
from modules.files import sha256
from modules.reading import checked, parse_json, require_file

UNKNOWN_VQ = "unknown"
"""Kind of the image tokenizer if it was not named."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class PretokenizedConfig(SourceConfig):
    """Where the captions and codes are and where the shards go."""

    annotations: str
    """File with lines {"captions": [texts], "tokens": [codes]}, as released by the authors of OmniMamba."""
    tokens_per_image: int = 256
    codebook_size: int = 16384
    vq: str = ""
    """The image tokenizer file that made the codes. Without it, training cannot check that it uses the same one."""
    name: str = "pretokenized"
    per_shard: int = 8192

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        if self.tokens_per_image < 1:
            found.append(f"tokens_per_image={self.tokens_per_image} must be at least 1")
        if not 1 <= self.codebook_size <= 1 << 16:
            found.append(f"codebook_size={self.codebook_size} must lie in [1, 65536]: codes are stored as uint16")
        return found


@dataclass(frozen=True, kw_only=True)
class Line:
    """Row of the plan: a line of the file."""

    key: str
    row: int
    start: int
    size: int


class _Entry(TypedDict):
    captions: list[Any]
    tokens: list[Any]


def build_pretokenized(config: PretokenizedConfig, progress: Progress | None = None) -> Path:
    """Build the shards and return their manifest.

    Raises:
        FileNotFoundError: a file of ``config`` is missing.
        ValueError: the file is a JSON list, ``vq`` has other sizes, or nothing can be used; see also `build_parts`.
        FileExistsError: ``config.out`` already holds another data set.
    """
    annotations = Path(config.annotations)
    rows = _rows(annotations, config.name)
    return build_parts(
        config,
        rows,
        partial(_image_of, annotations),
        PretokenizedMaker(
            annotations=annotations, tokens_per_image=config.tokens_per_image, codebook_size=config.codebook_size
        ),
        meta={
            "source": "pretokenized",
            "licence": config.licence,
            "annotations": {"file": annotations.name, "sha256": sha256(annotations)},
            "vq": _vq(config),
        },
        processes=processes_of(config),
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class PretokenizedMaker:
    """Turns lines into T2I samples: ``.json`` with the captions, ``.vq`` with the codes as little-endian uint16."""

    annotations: Path
    tokens_per_image: int
    codebook_size: int

    def __call__(self, rows: Sequence[Line], counts: Counter[str]) -> Iterator[Sample | Rejected]:
        """A sample or a reject per row, in the rows' order."""
        with self.annotations.open("rb") as file:
            for row in rows:
                file.seek(row.start)
                try:
                    yield row.key, self._sample(file.read(row.size), row.row)
                except BadEntryError as error:
                    yield Rejected(key=row.key, reason=str(error))

    def _sample(self, line: bytes, row: int) -> dict[str, bytes]:
        code = Annotated[int, Ge(0), Lt(self.codebook_size)]
        try:
            entry = checked(parse_json(line.decode(), "line"), _Entry, "entry")
            tokens = _flat(entry["tokens"])
            checked(tokens, cast(Any, list[code]), "tokens")
        except ValueError as error:
            raise BadEntryError(str(error)) from error
        if len(tokens) != self.tokens_per_image:
            raise BadEntryError(f"wrong number of tokens: {len(tokens)}, not {self.tokens_per_image}")
        content = {"captions": clean_captions(entry["captions"]), "row": row}
        return {"json": as_json(content), "vq": np.array(tokens, "<u2").tobytes()}


def _image_of(annotations: Path, row: Line) -> str:
    """The line's codes, which are all that is known of its picture; a line that cannot be read is rejected later."""
    with annotations.open("rb") as file:
        file.seek(row.start)
        try:
            entry = checked(parse_json(file.read(row.size).decode(), "line"), _Entry, "entry")
        except ValueError:
            return row.key
    return hashlib.sha256(json.dumps(_flat(entry["tokens"])).encode()).hexdigest()


def _flat(tokens: list[Any]) -> list[Any]:
    """Codes, or rows of codes, as one list."""
    return list(chain.from_iterable(tokens)) if all(isinstance(each, list) for each in tokens) else tokens


def _rows(path: Path, name: str) -> list[Line]:
    """The non-empty lines of the file."""
    require_file(path, "annotations file")
    rows: list[Line] = []
    start = 0
    with path.open("rb") as file:
        for line in file:
            content = line.removeprefix(_BOM) if start == 0 else line
            if not rows and content.lstrip().startswith(b"["):
                raise ValueError(
                    f"annotations file {path} holds a JSON list; write one object per line, without the list"
                )
            if content.strip():
                skipped = len(line) - len(content)
                key = f"{name}-{len(rows):08d}"
                rows.append(Line(key=key, row=len(rows), start=start + skipped, size=len(content)))
            start += len(line)
    return rows


def _vq(config: PretokenizedConfig) -> dict[str, Any]:
    """What is known about the image tokenizer, for the manifest."""
    sizes = {"codebook_size": config.codebook_size, "tokens_per_image": config.tokens_per_image}
    if not config.vq:
        return {"kind": UNKNOWN_VQ, "fingerprint": None, **sizes}
    found = describe_vq(config.vq)
    del found["device"]  # the device that made the codes is unknown
    for key, value in sizes.items():
        if found[key] != value:
            raise ValueError(
                f"{key}={value}, but the image tokenizer {config.vq} has {found[key]}; it did not make these codes"
            )
    return found
