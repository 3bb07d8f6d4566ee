"""Reader of COCO's captions JSON, and the choice of (picture, caption) pairs for evaluating T2I.

Two published protocols come with fixed tables of prompts. `read_prompts` reads those, and the files of
`write_prompts`.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict

from datamodules.benchmarks.questions import (
    BENCHMARK,
    OFFICIAL_ELSE,
    Text,
    require_columns,
    require_images,
    require_unique,
)
from modules.files import write_file
from modules.folders import files_below
from modules.reading import checked, read_json, read_json_lines, read_text, shown

OFFICIAL_IMAGES = 40_504
"""Pictures of val2014."""
OFFICIAL_PROMPTS = 30_000
"""Prompts in a published table."""
DIGITS = 12
"""Of the number in the name of one of its pictures."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class Listed(TypedDict):
    """A picture in a captions file."""

    id: int
    file_name: Text


class Annotation(TypedDict):
    """A caption in a captions file."""

    id: int
    image_id: int
    caption: str


class Captions(TypedDict):
    """A captions file."""

    images: list[Listed]
    annotations: list[Annotation]


class Line(TypedDict):
    """A line of a table of prompts."""

    caption: Text
    image_id: int | None
    caption_id: int | None
    image: str | None


@dataclass(frozen=True, kw_only=True)
class CaptionPair:
    """A caption to draw, and the picture it was written for."""

    image_id: int
    caption_id: int
    caption: str
    image: Path


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A line of a table of prompts; missing columns are None."""

    caption: str
    image_id: int | None = None
    caption_id: int | None = None
    image: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionSet:
    """The pictures of a captions file, and their captions as (caption id, text) in order of id.

    White space is collapsed as in the training data: some of COCO's captions end in line breaks.
    """

    path: Path
    images: dict[int, Path]
    captions: dict[int, list[tuple[int, str]]]

    @classmethod
    def read(cls, path: Path, images: Path) -> "CaptionSet":
        """Read the captions file ``path``, whose pictures are in the folder ``images``.

        Raises:
            FileNotFoundError: the captions file is missing.
            ValueError: it does not have COCO's layout, repeats an id, or has a caption of an unlisted picture.
        """
        file = read_json(path, Captions, BENCHMARK)
        require_unique([entry["id"] for entry in file["images"]], "the image id", path)
        require_unique([entry["id"] for entry in file["annotations"]], "the annotation id", path)
        files = {entry["id"]: images / entry["file_name"] for entry in file["images"]}
        captions: dict[int, list[tuple[int, str]]] = {}
        for entry in file["annotations"]:
            if entry["image_id"] not in files:
                raise ValueError(f"annotation {entry['id']} of {path} is of the unlisted image {entry['image_id']}")
            captions.setdefault(entry["image_id"], []).append((entry["id"], " ".join(entry["caption"].split())))
        return cls(path=path, images=files, captions={key: sorted(captions[key]) for key in sorted(captions)})

    def choose(self, n: int, seed: int) -> list[CaptionPair]:
        """``n`` different pictures, each with one of its captions: a pure function of the file, n and the seed.

        Raises:
            FileNotFoundError: a chosen picture is missing.
            ValueError: fewer than ``n`` pictures have captions.
        """
        if n > len(self.captions):
            raise ValueError(f"{n} pictures asked for, but {self.path} has captions of {len(self.captions)}; lower n")
        draw = random.Random(seed)
        chosen = draw.sample(list(self.captions), n)
        pairs = []
        for image_id in chosen:
            caption_id, caption = draw.choice(self.captions[image_id])
            pairs.append(
                CaptionPair(image_id=image_id, caption_id=caption_id, caption=caption, image=self.images[image_id])
            )
        require_images((pair.image for pair in pairs), self.path)
        return pairs

    def only(self, suits: Callable[[str], bool]) -> "CaptionSet":
        """The same with only the captions that suit, and their pictures."""
        kept = {key: [each for each in texts if suits(each[1])] for key, texts in self.captions.items()}
        captions = {key: texts for key, texts in kept.items() if texts}
        return CaptionSet(path=self.path, images={key: self.images[key] for key in captions}, captions=captions)

    def require_official(self) -> None:
        """Raise ValueError unless the file lists all pictures of val2014."""
        if len(self.images) != OFFICIAL_IMAGES:
            raise ValueError(
                f"{self.path} lists {len(self.images)} images, expected {OFFICIAL_IMAGES}. {OFFICIAL_ELSE}"
            )

    def all_images(self) -> list[Path]:
        """Every picture of the file, in order of id.

        Raises:
            FileNotFoundError: one is missing.
        """
        paths = [self.images[image_id] for image_id in sorted(self.images)]
        require_images(paths, self.path)
        return paths


def read_prompts(path: Path, n: int, images: Path | None, *, official: bool) -> list[Prompt]:
    """The first ``n`` prompts of a table, in its order.

    The table is a ``.csv`` with the columns ``image_id,text`` (text2image-benchmark), a tab-separated one with the
    column ``Prompt`` (LlamaGen), or a ``.jsonl`` from `write_prompts`. Pictures are in ``images``; a picture given by
    ``image_id`` has its val2014 name.

    Raises:
        FileNotFoundError: the table or a picture is missing.
        ValueError: the table has another layout, fewer than ``n`` prompts, or not the ``official`` number.
    """
    lines = [line for _, line in read_json_lines(path, Line, BENCHMARK)] if path.suffix == ".jsonl" else _csv(path)
    if official and path.suffix != ".jsonl" and len(lines) != OFFICIAL_PROMPTS:
        raise ValueError(f"{path} holds {len(lines)} prompts, expected {OFFICIAL_PROMPTS}. {OFFICIAL_ELSE}")
    if n > len(lines):
        raise ValueError(f"{n} prompts asked for, but {path} holds {len(lines)}; lower n")
    prompts = [_prompt(line, images) for line in lines[:n]]
    require_images((prompt.image for prompt in prompts if prompt.image), path)
    return prompts


def write_prompts(path: Path, prompts: Sequence[Prompt | CaptionPair]) -> None:
    """Write a choice of prompts, one JSON object per line, so that it can be used again."""
    lines = [
        {
            "index": index,
            "image_id": prompt.image_id,
            "caption_id": prompt.caption_id,
            "caption": prompt.caption,
            "image": prompt.image.name if prompt.image else None,
        }
        for index, prompt in enumerate(prompts)
    ]
    write_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def pictures_in(folder: Path, *, official: bool) -> list[Path]:
    """All pictures in and below ``folder``, sorted by path; see `files_below`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no picture, or not the ``official`` number.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"folder of reference pictures {folder} {problem}; check the configuration")
    found = [path for path in files_below(folder) if path.suffix.lower() in PICTURES]
    if not found or (official and len(found) != OFFICIAL_IMAGES):
        expected = f"expected {OFFICIAL_IMAGES}. {OFFICIAL_ELSE}" if official else f"expected {', '.join(PICTURES)}"
        raise ValueError(f"{folder} holds {len(found)} pictures, {expected}")
    return found


def _csv(path: Path) -> list[Line]:
    """The lines of a table with columns."""
    text = read_text(path, BENCHMARK)
    first = text.partition("\n")[0]
    table = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in first or "," not in first else ",")
    try:
        columns = table.fieldnames or []
        if "Prompt" not in columns and not {"image_id", "text"} <= set(columns):
            raise ValueError(f"{path} has the columns {', '.join(columns)}; expected image_id,text or Prompt")
        wanted = ("Prompt",) if "Prompt" in columns else ("image_id", "text")
        require_columns(columns, wanted, path)
        return list(_lines(table, wanted, path))
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read after line {table.line_num} ({error}); fetch it again") from error


def _lines(table: "csv.DictReader[str]", columns: Sequence[str], path: Path) -> Iterator[Line]:
    for row in table:
        where = f"line {table.line_num} of {BENCHMARK} {path}"
        if None in row:
            raise ValueError(f"{where} has more cells than there are columns; quote a prompt that holds the separator")
        checked({name: row[name] for name in columns}, dict[str, Text], where)
        if "image_id" not in columns:
            yield Line(caption=row["Prompt"], image_id=None, caption_id=None, image=None)
            continue
        number = row["image_id"]
        if not (number.isdecimal() and len(number) <= DIGITS):
            raise ValueError(f"{where} has the image_id {shown(number)}; expected a number of at most {DIGITS} digits")
        image = f"COCO_val2014_{int(number):0{DIGITS}d}.jpg"
        yield Line(caption=row["text"], image_id=int(number), caption_id=None, image=image)


def _prompt(line: Line, images: Path | None) -> Prompt:
    return Prompt(
        caption=" ".join(line["caption"].split()),
        image_id=line["image_id"],
        caption_id=line["caption_id"],
        image=images / line["image"] if images and line["image"] else None,
    )
