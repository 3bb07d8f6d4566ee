"""The text tokenizer and the VQ tokenizer of a model: without them, its weights mean nothing.

A run, a checkpoint and an export know both by their content, and keep a copy of what is small.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from modules.checkpoints import CheckpointError, read_facts
from modules.files import new_path
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.llamagen import PUBLISHED_PREFIX, LlamaGenVQ
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import ImageTokenizer
from modules.reading import checked
from modules.run_files import TOKENIZER, VQ_SAFETENSORS, VQ_TORCH
from modules.weight_files import read_weights, weight_files

KEY = "model_files"
"""Where checkpoints and exports hold the hashes."""
SMALL = 16 * 2**20
"""A VQ tokenizer of at most this many bytes is kept."""
_TITLES = {"tokenizer": "text tokenizer", "vq": "VQ tokenizer"}
_HARM = {"tokenizer": "ids would stand for other words", "vq": "codes would stand for other pictures"}


class _Stored(TypedDict, total=False):
    tokenizer: str
    vq: str


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The hashes (hex) of both; empty where there is none, or it is unknown.

    The VQ tokenizer's hash is that of its weights, as in the manifests of T2I shards: the same in every file format.
    """

    tokenizer: str = ""
    vq: str = ""

    @classmethod
    def of(cls, tokenizer: TextTokenizer, vq: ImageTokenizer | None) -> "ModelFiles":
        """Those of loaded tokenizers.

        Every rank may ask. What is hashed is already in its memory: VQ-16 takes less time than it took to load.
        """
        return cls(tokenizer=tokenizer.fingerprint, vq=vq.fingerprint if vq is not None else "")

    @classmethod
    def stored(cls, facts: dict[str, Any], where: str) -> "ModelFiles":
        """Those in ``facts`` of a checkpoint or an export, empty in those of earlier versions.

        Raises:
            ValueError: they are not hashes; the message begins with ``where``.
        """
        found = checked(facts.get(KEY, {}), _Stored, f"{where}, {KEY}")
        return cls(tokenizer=found.get("tokenizer", ""), vq=found.get("vq", ""))

    @classmethod
    def of_checkpoint(cls, folder: Path) -> "ModelFiles":
        """Those that a checkpoint was saved with."""
        return cls.stored(read_facts(folder), str(folder))

    def as_dict(self) -> dict[str, str]:
        """Those that are known, as plain data."""
        return {key: value for key, value in asdict(self).items() if value}

    def agreed(self, known: "ModelFiles", origin: str, model: ModelConfig, warn: Callable[[str], None]) -> "ModelFiles":
        """What is known after comparing these, of the files in ``model``, with ``known``, those of ``origin``.

        ``warn`` is called once if ``origin`` does not know a file that is there.

        Raises:
            CheckpointError: a file has other content.
        """
        mine, theirs = self.as_dict(), known.as_dict()
        for key in mine.keys() & theirs.keys():
            if mine[key] != theirs[key]:
                raise CheckpointError(
                    f"model.{key}={getattr(model, key)} is not the {_TITLES[key]} of {origin}: its hash is "
                    f"{mine[key]}, but that one's is {theirs[key]}, and {_HARM[key]}. Restore the file, or name one of "
                    f"the same content with model.{key}=...; run folders and exports keep {TOKENIZER} and a small VQ "
                    "tokenizer"
                )
        if unknown := [key for key in _TITLES if key in mine and key not in theirs]:
            titles = " and ".join(_TITLES[key] for key in unknown)
            paths = " and ".join(f"model.{key}={getattr(model, key)}" for key in unknown)
            warn(
                f"{origin} was saved without the hash of its {titles}, so {paths} cannot be checked and is taken as it "
                "is. The next checkpoint or export holds the hash"
            )
        return ModelFiles(**theirs | mine)


def keep(folder: Path, model: ModelConfig, limit: int = SMALL) -> None:
    """Copy the text tokenizer of ``model`` into ``folder``, and its VQ tokenizer if it is at most ``limit`` bytes."""
    _copy(Path(model.tokenizer), folder / TOKENIZER)
    if not model.vq:
        return
    source = _one_file(Path(model.vq))
    target = folder / (VQ_SAFETENSORS if source.suffix == ".safetensors" else VQ_TORCH)
    for stale in (folder / VQ_SAFETENSORS, folder / VQ_TORCH):  # of an attempt with another one
        if stale != target and stale.resolve() != source.resolve():
            stale.unlink(missing_ok=True)
    if source.is_file() and source.stat().st_size <= limit:
        _copy(source, target)
    elif target.resolve() != source.resolve():
        target.unlink(missing_ok=True)


def kept(folder: Path) -> dict[str, Path]:
    """The copies that `keep` made in ``folder``, by their key in the model's configuration."""
    places = (("tokenizer", TOKENIZER), ("vq", VQ_SAFETENSORS), ("vq", VQ_TORCH))
    return {key: folder / name for key, name in places if (folder / name).is_file()}


def carried_vq(path: Path) -> ImageTokenizer | None:
    """The VQ tokenizer that weights in ``path`` hold beside the model, as a published OmniMamba does; None without.

    Only its tensors are read. Raises like `read_weights`.
    """
    weights = {
        name.removeprefix(PUBLISHED_PREFIX): value for name, value in read_weights(path, PUBLISHED_PREFIX).items()
    }
    return LlamaGenVQ.from_weights(f"VQ tokenizer in {path}", weights)[0] if weights else None


def _one_file(path: Path) -> Path:
    """The file of a VQ tokenizer, which may be named by its folder; the folder itself if it holds several."""
    files = weight_files(path)
    return files[0] if len(files) == 1 else path


def _copy(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        return
    with new_path(target) as partial:
        shutil.copyfile(source, partial)
