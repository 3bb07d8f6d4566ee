"""From a sample's place to its tensors: decoding, the choice of a caption, token sequences.

Shapes: B batch, S image size, T text ids, C caption ids, I image tokens.
"""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.encode import PromptTemplate, encode_caption, encode_conversation
from datamodules.images import squeeze, to_tensor
from datamodules.plan import SampleKey
from datamodules.shards import ShardSet
from modules.omnimamba.adapters import Task
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.tokenizer import TextTokenizer
from modules.seeds import keyed_seed


class DataError(ValueError):
    """A sample cannot be used; the message names its shard set and key."""


class T2ISamples:
    """Captions and VQ codes of one shard set."""

    def __init__(self, shards: ShardSet, tokenizer: TextTokenizer, model: ModelConfig, seed: int) -> None:
        self.shards, self.tokenizer, self.model, self.seed = shards, tokenizer, model, seed

    def fetch(self, keys: Sequence[SampleKey]) -> dict[str, Tensor]:
        """``caption_ids`` int64 (B, C+5) and ``image_ids`` int64 (B, I); one caption a sample, chosen by key.

        Raises:
            DataError: a sample's codes do not fit the model.
        """
        captions, codes = [], []
        for key in keys:
            fields = self.shards.get(key.index)
            texts = json.loads(fields["json"])["captions"]
            chosen = texts[keyed_seed(self.seed, "caption", key.epoch, key.index) % len(texts)]
            captions.append(encode_caption(self.tokenizer, chosen, self.model.caption_length))
            codes.append(self._codes(fields["vq"], key.index))
        return {"caption_ids": torch.tensor(captions), "image_ids": torch.from_numpy(np.stack(codes))}

    def _codes(self, payload: bytes, index: int) -> Any:
        codes = np.frombuffer(payload, dtype="<u2").astype(np.int64)
        highest = int(codes.max(initial=0))
        if len(codes) != self.model.image_tokens or highest >= self.model.image_vocab:
            raise DataError(
                f"{self.shards.key(index)}: {len(codes)} VQ codes up to {highest}, but the model takes "
                f"model.image_tokens={self.model.image_tokens} below model.image_vocab={self.model.image_vocab}; "
                "prepare the data with the VQ tokenizer that the model is configured for"
            )
        return codes


class MMUSamples:
    """Images and conversations of one shard set."""

    def __init__(
        self, shards: ShardSet, tokenizer: TextTokenizer, model: ModelConfig, template: PromptTemplate
    ) -> None:
        self.shards, self.tokenizer, self.model, self.template = shards, tokenizer, model, template

    def fetch(self, keys: Sequence[SampleKey]) -> dict[str, Tensor]:
        """``images`` uint8 (B, 3, S, S), ``input_ids`` int64 (B, T+4), ``labels`` int64 (B, T).

        Raises:
            DataError: an image does not decode, or a conversation does not fit.
        """
        images, ids, labels = [], [], []
        for key in keys:
            fields = self.shards.get(key.index)
            sample_ids, sample_labels = self._text(fields["json"], key.index)
            images.append(self._image(fields["jpg"], key.index))
            ids.append(sample_ids)
            labels.append(sample_labels)
        return {"images": torch.stack(images), "input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}

    def _text(self, payload: bytes, index: int) -> tuple[list[int], list[int]]:
        values = [turn["value"].replace("<image>", "").strip() for turn in json.loads(payload)["conversations"]]
        turns = list(zip(values[::2], values[1::2], strict=True))
        try:
            return encode_conversation(self.tokenizer, turns, self.template, self.model.mmu_text_length)
        except ValueError as error:
            raise DataError(f"{self.shards.key(index)}: {error}") from error

    def _image(self, payload: bytes, index: int) -> Tensor:
        try:
            with Image.open(io.BytesIO(payload)) as image:
                return to_tensor(squeeze(image.convert("RGB"), self.model.vision.image_size))
        except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{self.shards.key(index)}: its image does not decode ({error}); the checksum is right, so it "
                "was stored like this: prepare the data again without it"
            ) from error


class MixedDataset(Dataset[Any]):
    """Micro-batches of all tasks; its index is the list of a micro-step's keys."""

    def __init__(self, samples: dict[Task, T2ISamples | MMUSamples]) -> None:
        self.samples = samples

    def __getitem__(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        """Per task its tensors, and under ``keys`` the sample keys per task."""
        batch: dict[str, Any] = {"keys": {}}
        for task, samples in self.samples.items():
            mine = [key for key in keys if key.task == task]
            batch[task] = samples.fetch(mine)
            batch["keys"][task] = [samples.shards.key(key.index) for key in mine]
        return batch
