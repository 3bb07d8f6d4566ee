"""Draws scenes, trains tokenizers on them and builds shards: the data of the embedded runs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.scenes.config import ScenesConfig
from datamodules.shards.folders import holds, locked_folder, write_origin
from datamodules.sources.coco import CocoConfig, build_coco
from datamodules.sources.llava import LlavaConfig, build_llava
from modules.files import new_folder

if TYPE_CHECKING:
    from torch import Tensor

ORIGIN = "prepared.json"
_FORMAT = 2
"""Raise this whenever the same configuration gives other files."""
_FIT_IMAGES = 2000
_LICENCE = "drawn here; free to use"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PrepareScenesConfig(ScenesConfig):
    """The scenes, and how they are tokenized."""

    folder: str
    """Where everything goes."""
    vocab_size: int = 512
    """Maximum number of entries of the text tokenizer."""
    codebook_size: int = 512
    """Number of codes of the image tokenizer."""
    patch_size: int = 4
    """Side of the patch that becomes one code: with 4, a picture of 64 px has 256 codes."""
    per_shard: int = 1000
    """Samples of a shard."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        if self.vocab_size < 257:
            found.append(f"vocab_size={self.vocab_size} must be at least 257: 256 bytes and the end of text")
        if not 1 <= self.codebook_size <= 65536:
            found.append(f"codebook_size={self.codebook_size} must lie in [1, 65536]")
        if self.patch_size < 1 or 64 % self.patch_size:
            found.append(f"patch_size={self.patch_size} does not divide the scenes' 64 pixels; choose 2, 4, 8 or 16")
        if self.per_shard < 1:
            found.append(f"per_shard={self.per_shard} must be at least 1")
        return found


@dataclass(frozen=True, kw_only=True)
class PreparedPaths:
    """Paths of the prepared files; ``t2i``, ``mmu_captions`` and ``mmu_instruct`` are manifests."""

    folder: Path
    scenes: Path
    tokenizer: Path
    vq: Path
    t2i: Path
    mmu_captions: Path
    mmu_instruct: Path

    @classmethod
    def under(cls, folder: Path) -> "PreparedPaths":
        """The paths in a prepared folder."""
        return cls(
            folder=folder,
            scenes=folder / "scenes",
            tokenizer=folder / "tokenizer.json",
            vq=folder / "vq.safetensors",
            t2i=folder / "t2i" / "manifest.json",
            mmu_captions=folder / "mmu_captions" / "manifest.json",
            mmu_instruct=folder / "mmu_instruct" / "manifest.json",
        )


def prepare_scenes(config: PrepareScenesConfig, say: Say = print) -> PreparedPaths:
    """Draw the scenes, train both tokenizers on them and build the shards: all of it in ``config.folder``, or nothing.

    Returns at once if the folder already holds this configuration. Any number of processes may ask at the same time:
    one works, the others wait for it.

    Raises:
        ValueError: ``config`` breaks a rule.
        FolderError: the folder holds something else.
    """
    if problems := config.problems():
        raise ValueError("prepare scenes: " + "; ".join(problems))
    folder = Path(config.folder).resolve()
    origin = {"format_version": _FORMAT, **asdict(config)}
    del origin["folder"]
    if holds(folder, ORIGIN, origin):  # looked at first: it may be on a disk that cannot be written
        return PreparedPaths.under(folder)
    with locked_folder(folder):
        if not holds(folder, ORIGIN, origin):
            with new_folder(folder) as partial:
                _build_scenes(PreparedPaths.under(partial), config, say)
                write_origin(partial / ORIGIN, origin)
    return PreparedPaths.under(folder)


def _build_scenes(paths: PreparedPaths, config: PrepareScenesConfig, say: Say) -> None:
    from datamodules.scenes.vocabulary import train_tokenizer
    from datamodules.scenes.write import write_scenes
    from modules.omnimamba.vq import PatchKMeans

    captions, pictures = paths.scenes / "annotations" / "captions_train2014.json", paths.scenes / "train2014"
    with _timed(say, f"scenes: {config.images} training and {config.val_images} validation images"):
        write_scenes(paths.scenes, config)
    with _timed(say, "text tokenizer"):
        train_tokenizer(_texts(paths.scenes), paths.tokenizer, vocab_size=config.vocab_size)
    with _timed(say, f"image tokenizer: {config.codebook_size} codes of {config.patch_size} x {config.patch_size} px"):
        vq = PatchKMeans.fit(
            _load(sorted(pictures.iterdir())[:_FIT_IMAGES]),
            codebook_size=config.codebook_size,
            patch_size=config.patch_size,
            seed=config.seed,
        )
        vq.save(paths.vq)
    with _timed(say, "shards: t2i, mmu_captions, mmu_instruct"):
        build_coco(
            CocoConfig(
                captions=str(captions),
                images=str(pictures),
                vq=str(paths.vq),
                out=str(paths.t2i.parent),
                name="scenes-train",
                per_shard=config.per_shard,
                processes=1,
                licence=_LICENCE,
            )
        )
        for manifest in (paths.mmu_captions, paths.mmu_instruct):
            name = manifest.parent.name
            build_llava(
                LlavaConfig(
                    annotations=str(paths.scenes / "llava" / f"{name.removeprefix('mmu_')}.json"),
                    images=str(paths.scenes),
                    out=str(manifest.parent),
                    name=f"scenes-{name.removeprefix('mmu_')}",
                    per_shard=config.per_shard,
                    processes=1,
                    licence=_LICENCE,
                )
            )


def _texts(scenes: Path) -> Iterator[str]:
    """Training texts of the text tokenizer: captions, and questions and answers as the model will see them."""
    from datamodules.encode import PromptTemplate
    from datamodules.scenes.questions import ANSWERS
    from modules.reading import read_json

    captions = read_json(scenes / "annotations" / "captions_train2014.json", dict[str, Any], "captions file")
    for each in captions["annotations"]:
        yield each["caption"]
    # so that every answer becomes one token, even if a few images do not cover all of them
    for answer in ANSWERS:
        yield from (answer, answer.capitalize(), f" {answer}")
    template = PromptTemplate()
    for entry in read_json(scenes / "llava" / "instruct.json", list[Any], "conversations file"):
        for turn in entry["conversations"]:
            text = turn["value"].removeprefix("<image>\n")
            yield template.asked(text) if turn["from"] == "human" else text


def _load(paths: Sequence[Path]) -> "Tensor":
    """Images of one size as uint8 (N, 3, H, W)."""
    import torch

    from datamodules.images import read_image, to_tensor

    return torch.stack([to_tensor(read_image(path)) for path in paths])


@contextmanager
def _timed(say: Say, what: str) -> Iterator[None]:
    """When the block is done, say what was done and how long it took."""
    start = time.perf_counter()
    yield
    say(f"  {what} ({time.perf_counter() - start:.1f} s)")
