"""Reader of COCO's captions JSON, and the choice of (picture, caption) pairs for evaluating T2I.

Two published protocols come with fixed tables of prompts. `read_prompts` reads those, and the files of
`write_prompts`.
"""

import csv
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.benchmarks.questions import (
    OFFICIAL_ELSE,
    read_json,
    read_json_lines,
    read_text,
    require_images,
    require_keys,
)
from modules.files import write_file

OFFICIAL_IMAGES = 40_504
"""Pictures of val2014."""
OFFICIAL_PROMPTS = 30_000
"""Prompts in a published table."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


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
            ValueError: it does not have COCO's layout, or has a caption of an unlisted picture.
        """
        document = read_json(path)
        require_keys(document, ("images", "annotations"), str(path))
        files: dict[int, Path] = {}
        for number, entry in enumerate(document["images"]):
            require_keys(entry, ("id", "file_name"), f"image {number} of {path}")
            files[entry["id"]] = images / entry["file_name"]
        captions: dict[int, list[tuple[int, str]]] = {}
        for number, entry in enumerate(document["annotations"]):
            require_keys(entry, ("id", "image_id", "caption"), f"annotation {number} of {path}")
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
    rows = _jsonl(path) if path.suffix == ".jsonl" else _csv(path)
    if official and path.suffix != ".jsonl" and len(rows) != OFFICIAL_PROMPTS:
        raise ValueError(f"{path} holds {len(rows)} prompts, expected {OFFICIAL_PROMPTS}. {OFFICIAL_ELSE}")
    if n > len(rows):
        raise ValueError(f"{n} prompts asked for, but {path} holds {len(rows)}; lower n")
    prompts = [_prompt(row, images) for row in rows[:n]]
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
    """All pictures in and below ``folder``, sorted by path.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no picture, or not the ``official`` number.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of reference pictures {folder} does not exist; check the configuration")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found or (official and len(found) != OFFICIAL_IMAGES):
        expected = f"expected {OFFICIAL_IMAGES}. {OFFICIAL_ELSE}" if official else f"expected {', '.join(PICTURES)}"
        raise ValueError(f"{folder} holds {len(found)} pictures, {expected}")
    return found


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for where, row in read_json_lines(path):
        require_keys(row, ("caption", "image_id", "caption_id", "image"), where)
        rows.append(row)
    return rows


def _csv(path: Path) -> list[dict[str, Any]]:
    """Rows with the keys that `write_prompts` uses."""
    text = read_text(path)
    first = text.partition("\n")[0]
    table = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in first or "," not in first else ",")
    columns = table.fieldnames or []
    if "Prompt" in columns:
        rows = [{"caption": row["Prompt"]} for row in table]
    elif {"image_id", "text"} <= set(columns):
        rows = [_with_coco_name(row, path, table.line_num) for row in table]
    else:
        raise ValueError(f"{path} has the columns {', '.join(columns)}; expected image_id,text or Prompt")
    empty = [number for number, row in enumerate(rows, start=1) if not row["caption"]]
    if empty:
        raise ValueError(f"row {empty[0]} of {path} holds no prompt; fetch the file again")
    return rows


def _with_coco_name(row: dict[str, Any], path: Path, line: int) -> dict[str, Any]:
    if not (row["image_id"] or "").isdecimal():
        raise ValueError(f"line {line} of {path} has the image_id {row['image_id']!r}; expected a number")
    number = int(row["image_id"])
    return {"caption": row["text"], "image_id": number, "image": f"COCO_val2014_{number:012d}.jpg"}


def _prompt(row: dict[str, Any], images: Path | None) -> Prompt:
    name = row.get("image")
    return Prompt(
        caption=" ".join(row["caption"].split()),
        image_id=row.get("image_id"),
        caption_id=row.get("caption_id"),
        image=images / name if images and name else None,
    )
