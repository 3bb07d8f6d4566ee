"""From places to tensors: decode images, choose captions, build token sequences.

Shapes: B batch, S image size, T text ids, C caption ids, I image tokens.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.encode import IGNORE, PromptTemplate, encode_caption, encode_conversation
from datamodules.images import mmu_pixels
from datamodules.plan import Places
from datamodules.shards.reader import ShardSet
from datamodules.stored import content_of, turns_of
from datamodules.t2i_table import T2ITable
from modules.omnimamba.config import ModelConfig, Task
from modules.omnimamba.tokenizer import TextTokenizer
from modules.seeds import keyed_hashes, keyed_seed

CaptionChoice = Literal["random", "rotate"]
Padding = Literal["fixed", "none"]
_SUBSTITUTES = 10
"""How many substitutes are tried for an unusable sample. That many bad ones in a row are no accident."""


class DataError(ValueError):
    """Unusable samples; the message names their shard set and key."""


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that could not be used, and the one that replaced it."""

    task: Task
    epoch: int
    key: str
    reason: str
    substitute: str


class T2ISamples:
    """Captions and VQ codes of one shard set."""

    def __init__(
        self,
        shards: ShardSet,
        table: T2ITable,
        tokenizer: TextTokenizer,
        model: ModelConfig,
        *,
        seed: int,
        caption: CaptionChoice,
        caption_dropout: float,
    ) -> None:
        self.shards, self.table = shards, table
        self.caption, self.caption_dropout = caption, caption_dropout
        self._choice, self._dropout = keyed_seed(seed, "caption"), keyed_seed(seed, "caption dropout")
        self._no_caption = np.array(encode_caption(tokenizer, "", model.caption_length))

    def fetch(self, places: Places) -> dict[str, Tensor]:
        """``caption_ids`` int64 (B, C+5) and ``image_ids`` int64 (B, I); one caption per sample, chosen by place.

        Raises:
            DamagedShardError: the table on disk is damaged.
        """
        captions = self.table.captions(places.indices, self._choices(places))
        if self.caption_dropout:
            hashes = keyed_hashes(self._dropout, places.indices, places.epochs)
            captions[(hashes >> np.uint64(11)) * 2.0**-53 < self.caption_dropout] = self._no_caption
        codes = self.table.codes(places.indices)
        return {"caption_ids": torch.from_numpy(captions), "image_ids": torch.from_numpy(codes)}

    def _choices(self, places: Places) -> NDArray[np.uint64]:
        if self.caption == "rotate":  # each of n captions exactly once in n epochs
            start = keyed_hashes(self._choice, places.indices) >> np.uint64(1)
            return start + places.epochs.astype(np.uint64)
        return keyed_hashes(self._choice, places.indices, places.epochs)


class MMUSamples:
    """Images and conversations of one shard set."""

    def __init__(
        self,
        shards: ShardSet,
        tokenizer: TextTokenizer,
        model: ModelConfig,
        template: PromptTemplate,
        *,
        seed: int,
        pad: Padding,
    ) -> None:
        self.shards, self.tokenizer, self.model, self.template = shards, tokenizer, model, template
        self.seed, self.pad = seed, pad

    def fetch(self, places: Places) -> tuple[dict[str, Any], Places, list[BadSample]]:
        """The tensors, the places they come from, and the samples that could not be used.

        ``images`` uint8 (B, 3, S, S), ``input_ids`` int64 (B, T+4), ``labels`` int64 (B, T) and ``labelled`` (M,), the
        indices in (B*T) that have a label. T is model.mmu_text_length. With ``pad="none"`` T is the longest text of
        the batch, and a list ``lengths`` gives the number of ``input_ids`` of each sample. An unusable sample is
        replaced by another one. The substitute depends on the place alone, so every process picks the same.

        Raises:
            DamagedShardError: a payload on disk is damaged.
            DataError: ten substitutes in a row cannot be used either.
        """
        loaded, used, bad = [], [], []
        for epoch, index in zip(places.epochs.tolist(), places.indices.tolist(), strict=True):
            sample, taken, faults = self._load_or_substitute(epoch, index)
            loaded.append(sample)
            used.append(taken)
            bad += faults
        return self._batch(loaded), Places(places.epochs, np.array(used)), bad

    def _load_or_substitute(self, epoch: int, index: int) -> tuple["_MMUSample", int, list[BadSample]]:
        bad: list[BadSample] = []
        for attempt in range(_SUBSTITUTES + 1):
            try:
                return self._load(index), index, bad
            except DataError as error:
                key, reason = self.shards.key(index), str(error)
            others = max(1, len(self.shards) - 1)
            away = 1 + keyed_seed(self.seed, "substitute", "mmu", epoch, index, attempt) % others
            index = (index + away) % len(self.shards)
            bad.append(BadSample(task="mmu", epoch=epoch, key=key, reason=reason, substitute=self.shards.key(index)))
        reasons = "; ".join(f"{each.key}: {each.reason}" for each in bad[:3])
        raise DataError(
            f"{len(bad)} MMU samples in a row cannot be used ({reasons}). Their checksums are correct, so they were "
            "written this way: prepare the data again"
        )

    def _load(self, index: int) -> "_MMUSample":
        fields = self.shards.get(index)
        try:
            ids, labels = encode_conversation(
                self.tokenizer,
                turns_of(content_of(fields["json"])),
                self.template,
                self.model.mmu_text_length,
                pad=self.pad == "fixed",
            )
            return _MMUSample(mmu_pixels(fields["jpg"], self.model.vision.image_size), ids, labels)
        except ValueError as error:
            raise DataError(str(error)) from error

    def _batch(self, samples: list["_MMUSample"]) -> dict[str, Any]:
        lengths = [len(sample.ids) for sample in samples]
        longest = max(lengths)
        rows = [sample.ids + [self.tokenizer.pad] * (longest - len(sample.ids)) for sample in samples]
        labels = [sample.labels + [IGNORE] * (longest - len(sample.ids)) for sample in samples]
        labels_BT = torch.tensor(labels)
        batch = {
            "images": torch.stack([sample.image for sample in samples]),
            "input_ids": torch.tensor(rows),
            "labels": labels_BT,
            "labelled": (labels_BT.flatten() != IGNORE).nonzero()[:, 0],
        }
        return batch | {"lengths": lengths} if self.pad == "none" else batch


Samples = T2ISamples | MMUSamples


class _MMUSample(NamedTuple):
    image: Tensor
    ids: list[int]
    labels: list[int]


class MixedDataset(Dataset[Any]):
    """Micro-batches of all tasks, indexed by the places of a micro-step."""

    def __init__(self, samples: dict[Task, T2ISamples | MMUSamples]) -> None:
        self.samples = samples

    def __getitem__(self, places: Mapping[Task, Places]) -> dict[str, Any]:
        """The tensors of each task under its name, ``places`` of each task's samples, and ``bad``: replaced samples."""
        batch: dict[str, Any] = {"places": {}, "bad": []}
        for task, samples in self.samples.items():
            if isinstance(samples, T2ISamples):
                batch[task], batch["places"][task] = samples.fetch(places[task]), places[task]
            else:
                batch[task], batch["places"][task], bad = samples.fetch(places[task])
                batch["bad"] += map(asdict, bad)
        return batch
