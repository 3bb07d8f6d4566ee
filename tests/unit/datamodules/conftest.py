import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.tokenizer import END_OF_TEXT, TextTokenizer
from tests.unit.datamodules.writing import write_shards

MODEL = ModelConfig(
    image_vocab=50,
    image_tokens=4,
    caption_length=12,
    mmu_text_length=40,
    vision=VisionConfig(image_size=16, patch_size=8),
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """One id per byte: lengths can be counted by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({**{END_OF_TEXT: 0}, **{c: i + 1 for i, c in enumerate(alphabet)}}, [])
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END_OF_TEXT])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return TextTokenizer(path)


def jpeg(shade: int, size: tuple[int, int] = (24, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def t2i_manifest(tmp_path: Path) -> Path:
    samples = [
        (
            f"image-{i}",
            {
                "json": json.dumps({"captions": [f"c{i}{j}" for j in range(5)], "image_id": i}).encode(),
                "vq": np.array([i, i + 1, i + 2, i + 3], "<u2").tobytes(),
            },
        )
        for i in range(30)
    ]
    return write_shards(tmp_path / "t2i", "t2i", samples, per_shard=8, meta={})


@pytest.fixture
def mmu_manifest(tmp_path: Path) -> Path:
    turns = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "A"}]
    samples = [
        (f"talk-{i}", {"json": json.dumps({"id": i, "conversations": turns}).encode(), "jpg": jpeg(8 * i)})
        for i in range(11)
    ]
    return write_shards(tmp_path / "mmu", "mmu", samples, per_shard=4, meta={})
