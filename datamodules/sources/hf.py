"""A Hugging Face data set to T2I shards (it has captions) or MMU shards (it has conversations)."""

import glob
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.shards.builder import Make, Progress
from datamodules.sources.common import BadEntryError, SourceConfig, clean_captions, processes_of, read_file
from datamodules.sources.mmu import Conversation, MMUMaker, checked_turns, question_and_answer
from datamodules.sources.split import build_parts
from datamodules.sources.t2i import CaptionedPicture, T2IMaker, describe_vq, processes_for_pictures
from modules.reading import require_file

_ROWS_AT_ONCE = 1000
_KINDS: dict[str, tuple[str, dict[str, str]]] = {
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}
"""Loader and options by file extension."""
_PACKED = (".gz", ".bz2", ".xz")
"""Extensions that may follow those of text files."""


@dataclass(frozen=True, kw_only=True)
class HfConfig(SourceConfig):
    """Which data set, which of its columns, and where the shards go.

    The named columns decide what is built: ``caption_column`` gives T2I shards; ``conversations_column``, or
    ``question_column`` and ``answer_column``, give MMU shards.
    """

    dataset: str
    """Name on the hub, a folder made by ``save_to_disk``, a folder of data files, or a data file: .parquet, .arrow,
    .json, .jsonl, .csv or .tsv. Text files may also have .gz, .bz2 or .xz."""
    config: str = ""
    """Configuration of the data set, if it has several."""
    split: str = "train"
    image_column: str = "image"
    caption_column: str = ""
    """A text or a list of texts."""
    conversations_column: str = ""
    """A list of turns, each {"from": "human" or "gpt", "value": text}."""
    question_column: str = ""
    answer_column: str = ""
    vq: str = ""
    """Image tokenizer file, for T2I shards."""
    batch: int = 64
    """Images tokenized at once, for T2I shards."""
    name: str = "hf"
    """Prefix of the names of shards and keys, and the ``source`` of each MMU sample."""
    per_shard: int = 1000

    @property
    def text_columns(self) -> list[str]:
        """The named columns, without the image column."""
        named = (self.caption_column, self.conversations_column, self.question_column, self.answer_column)
        return [column for column in named if column]

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        if self.batch < 1:
            found.append(f"batch={self.batch} must be at least 1")
        asked = bool(self.question_column), bool(self.answer_column)
        if asked[0] != asked[1]:
            found.append("question_column and answer_column belong together; name both")
        if bool(self.caption_column) + bool(self.conversations_column) + any(asked) != 1:
            found.append(
                "name either caption_column (T2I shards), or conversations_column, or question_column and "
                "answer_column (MMU shards)"
            )
        if bool(self.caption_column) != bool(self.vq):
            found.append("vq, the image tokenizer file, and caption_column belong together; name both or neither")
        return found


@dataclass(frozen=True, kw_only=True)
class HfRow:
    """Row of the plan."""

    key: str
    number: int


def build_hf(config: HfConfig, progress: Progress | None = None) -> Path:
    """Build the shards and return their manifest.

    Raises:
        OSError: there is no such data set, or the hub cannot be reached.
        ValueError: a column or split is missing, or nothing can be used; see also `build_parts`.
        FileExistsError: ``config.out`` already holds another data set.
    """
    dataset = _with_columns(_load(config), config)
    reader = HfReader(dataset, config)
    meta: dict[str, Any] = {
        "source": "hf",
        "licence": config.licence or str(dataset.info.license or ""),
        "dataset": {"name": Path(config.dataset).name, "config": config.config, "split": config.split},
        "columns": [config.image_column, *config.text_columns],
        "texts": {"sha256": _digest(dataset.select_columns(config.text_columns), config)},
    }
    make: Make[HfRow] = MMUMaker(read=reader.conversation, source=config.name)
    if config.caption_column:
        vq = describe_vq(config.vq)
        meta |= {"vq": vq, "batch": config.batch}
        make = T2IMaker(read=reader.captioned, vq=config.vq, vq_fingerprint=vq["fingerprint"], batch=config.batch)
    return build_parts(
        config,
        [HfRow(key=f"{config.name}-{number:08d}", number=number) for number in range(len(dataset))],
        reader.image_of,
        make,
        meta=meta,
        processes=processes_for_pictures(config) if config.caption_column else processes_of(config),
        progress=progress,
    )


def _load(config: HfConfig) -> Any:
    """The data set.

    Raises:
        ValueError: it is damaged, or `datasets` cannot read it.
        OSError: it cannot be had: the hub, the network or the disk failed.
    """
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        return _opened(config)
    except FileNotFoundError:
        raise
    except (DatasetsError, ArrowException, OSError) as error:
        cause = error.__cause__ or error  # the library's own error says only that there was one
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause from error
        raise ValueError(
            f"data set {config.dataset} cannot be read ({cause!s:.300}); fetch it again, or check the network"
        ) from error


def _opened(config: HfConfig) -> Any:
    import datasets

    path = Path(config.dataset)
    if path.is_file():
        kind, options = _kind(path)
        require_file(path, "data set file")
        # escaped: the library would treat the name as a pattern, and read every file that matches
        return datasets.load_dataset(kind, data_files=glob.escape(str(path)), split=config.split, **options)
    if path.is_dir():
        _check_folder(path)
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return datasets.load_dataset(config.dataset, config.config or None, split=config.split)
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.Dataset):
        if config.split != HfConfig.split:
            raise ValueError(f"{path} was saved as one data set without splits; leave split={config.split} out")
        return saved
    if config.split not in saved:
        raise ValueError(f"data set {path} has no split {config.split!r}; it has {', '.join(saved)}")
    return saved[config.split]


def _kind(path: Path) -> tuple[str, dict[str, str]]:
    """Loader and options for a data file."""
    *_, first, last = "", "", *(suffix.lower() for suffix in path.suffixes)
    loader, options = _KINDS.get(first if last in _PACKED else last, ("", {}))
    if not loader or (last in _PACKED and loader not in ("json", "csv")):
        raise ValueError(
            f"data set file {path} has an unknown extension; name a file that ends in {', '.join(_KINDS)} "
            f"(text files also with {', '.join(_PACKED)})"
        )
    if "::" in str(path):
        raise ValueError(f"data set file {path}: `datasets` reads :: as a chain of places; rename the file or folder")
    return loader, options


def _check_folder(folder: Path) -> None:
    """Raise ValueError if `datasets` would read files outside of ``folder``, or leave some out."""
    if glob.has_magic(str(folder)) or "::" in str(folder):
        raise ValueError(f"data set folder {folder}: `datasets` reads * ? [ and :: as patterns; rename the folder")
    for place, folders, names in os.walk(folder):
        if linked := [name for name in folders if Path(place, name).is_symlink()]:
            raise ValueError(
                f"data set folder {folder} holds the linked folder {Path(place, linked[0])}, which `datasets` does not "
                "enter; put the files themselves there, or name the linked folder"
            )
        for name in names:
            if Path(name).suffix.lower() in (*_KINDS, *_PACKED):
                require_file(Path(place, name), "data set file")


def _with_columns(dataset: Any, config: HfConfig) -> Any:
    """The needed columns, with the picture files left as they are."""
    import datasets

    wanted = [config.image_column, *config.text_columns]
    if missing := [column for column in wanted if column not in dataset.column_names]:
        raise ValueError(
            f"data set {config.dataset} has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}"
        )
    kind = dataset.features[config.image_column]
    is_binary = isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")
    is_struct = isinstance(kind, dict) and "bytes" in kind
    if not (isinstance(kind, datasets.Image) or is_binary or is_struct):
        raise ValueError(
            f"data set {config.dataset}: column {config.image_column} holds {kind}, not images; "
            "if these are file names, use the source images or llava"
        )
    return dataset.select_columns(wanted).cast_column(config.image_column, datasets.Image(decode=False))


def _digest(texts: Any, config: HfConfig) -> str:
    """Hex SHA-256 of the text columns; the data set's own fingerprint differs from copy to copy."""
    digest = hashlib.sha256()
    try:
        for batch in texts.iter(batch_size=_ROWS_AT_ONCE):
            digest.update(json.dumps(batch, default=str).encode())
    except UnicodeDecodeError as error:
        columns = ", ".join(config.text_columns)
        raise ValueError(
            f"data set {config.dataset}: column {columns} holds text that is not UTF-8 ({error}); convert it"
        ) from error
    return digest.hexdigest()


@dataclass(frozen=True)
class HfReader:
    """Reads rows of a data set whose image column holds files."""

    dataset: Any
    config: HfConfig

    def captioned(self, row: HfRow) -> CaptionedPicture:
        """Captions and picture of ``row``.

        Raises:
            BadEntryError: they are missing or cannot be used.
        """
        content = self.dataset[row.number]
        captions = clean_captions(content[self.config.caption_column])
        file, picture = _picture(content[self.config.image_column], row.number)
        return CaptionedPicture(file=file, captions=captions, content=picture, about={"row": row.number})

    def image_of(self, row: HfRow) -> str:
        """What tells the row's picture from others: its content, or its path if it is not in the data set itself."""
        picture = self.dataset[row.number][self.config.image_column] or {}
        content = picture.get("bytes")
        return hashlib.sha256(content).hexdigest() if content is not None else str(picture.get("path") or row.key)

    def conversation(self, row: HfRow) -> Conversation:
        """Conversation and picture of ``row``.

        Raises:
            BadEntryError: they are missing or cannot be used.
        """
        config, content = self.config, self.dataset[row.number]
        if config.conversations_column:
            turns = checked_turns(_listed(content[config.conversations_column]))
        else:
            turns = question_and_answer(content[config.question_column], content[config.answer_column])
        file, picture = _picture(content[config.image_column], row.number)
        return Conversation(id=str(row.number), turns=turns, file=file, content=picture)


def _listed(turns: Any) -> Any:
    """A list of turns; some releases of `datasets` return a list of objects as an object of lists."""
    if isinstance(turns, dict):
        return [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    return turns


def _picture(value: dict[str, Any] | None, number: int) -> tuple[str, bytes]:
    """Name and content of a picture file."""
    name = Path((value or {}).get("path") or f"row-{number}").name
    if value and value["bytes"] is not None:
        return name, value["bytes"]
    if value and value["path"]:
        return name, read_file(Path(value["path"]).parent, name)
    raise BadEntryError("no image")
