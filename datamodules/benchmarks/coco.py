"""Reader of COCO's captions JSON, and the choice of the (picture, caption) pairs that T2I is evaluated on."""

import random
from dataclasses import dataclass
from pathlib import Path

from datamodules.benchmarks.questions import read_json, require_images, require_keys


@dataclass(frozen=True, kw_only=True)
class CaptionPair:
    """A caption to draw, and the picture that it was written for."""

    image_id: int
    caption_id: int
    caption: str
    image: Path


@dataclass(frozen=True, kw_only=True)
class CaptionSet:
    """The pictures of a captions file, and their captions as (caption id, text) in order of id.

    White space is as in the training data: some of COCO's captions end in line breaks.
    """

    path: Path
    images: dict[int, Path]
    captions: dict[int, list[tuple[int, str]]]

    @classmethod
    def read(cls, path: Path, images: Path) -> "CaptionSet":
        """Read the captions file ``path``, whose pictures lie in the folder ``images``.

        Raises:
            FileNotFoundError: the captions file is missing.
            ValueError: it has another layout than COCO's, or a caption of a picture that it does not list.
        """
        document = read_json(path)
        require_keys(document, ("images", "annotations"), str(path))
        files: dict[int, Path] = {}
        for number, record in enumerate(document["images"]):
            require_keys(record, ("id", "file_name"), f"image {number} of {path}")
            files[record["id"]] = images / record["file_name"]
        captions: dict[int, list[tuple[int, str]]] = {}
        for number, record in enumerate(document["annotations"]):
            require_keys(record, ("id", "image_id", "caption"), f"annotation {number} of {path}")
            if record["image_id"] not in files:
                raise ValueError(f"annotation {record['id']} of {path} is of the unlisted image {record['image_id']}")
            captions.setdefault(record["image_id"], []).append((record["id"], " ".join(record["caption"].split())))
        return cls(path=path, images=files, captions={key: sorted(captions[key]) for key in sorted(captions)})

    def choose(self, n: int, seed: int) -> list[CaptionPair]:
        """``n`` different pictures, each with one of its captions: a function of the file, n and the seed.

        Raises:
            FileNotFoundError: a chosen picture is missing.
            ValueError: fewer than ``n`` pictures have captions.
        """
        if n > len(self.captions):
            raise ValueError(f"{n} pictures asked for, {self.path} has captions of {len(self.captions)}; lower n")
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

    def all_images(self) -> list[Path]:
        """Every picture of the file, in order of id.

        Raises:
            FileNotFoundError: one is missing.
        """
        paths = [self.images[image_id] for image_id in sorted(self.images)]
        require_images(paths, self.path)
        return paths
