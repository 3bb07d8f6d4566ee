"""Small stand-ins for the files that docs/reproduce.md starts from, in the layouts in which they are published."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from datamodules.scenes.prepare import PreparedPaths
from modules.omnimamba.initialise import initialise
from modules.omnimamba.llamagen import CODEBOOK
from modules.omnimamba.llamagen_layers import LlamaGenConfig
from modules.omnimamba.model import OmniMamba
from modules.published import PublishedWeights, to_published
from pipelines.run.config import load
from tests.mamba2_files import mamba2_weights
from tests.unit.datamodules.benchmarks import test_mme_reader, test_mmmu_reader, test_vqav2_reader
from tests.unit.modules.omnimamba.recorded import RECORDED

VQ_16 = LlamaGenConfig(channels=32, channel_multipliers=(1, 1, 1, 1, 2), z_channels=64)
"""VQ-16 with fewer channels: as many pixels, codes and entries."""
PICTURES, CAPTIONS = 4, 5
TALK = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A circle."},
    {"from": "human", "value": "Which colour?"},
    {"from": "gpt", "value": "Red."},
]


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """Makes what a command fetches, and what is fetched by hand, in the folder of a clone."""

    clone: Path
    scenes: PreparedPaths

    def fetch(self, name: str, repository: str, folder: Path) -> None:
        """Put the stand-in for the file ``name`` of ``repository`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writers[repository, name](folder / name)

    def by_hand(self) -> None:
        """Put pictures and benchmarks where the page says."""
        pictures = sorted((self.scenes.scenes / "train2014").iterdir())[:PICTURES]
        coco = self.clone / "downloads" / "llava" / "coco" / "train2017"
        coco.mkdir(parents=True)
        for number, picture in enumerate(pictures):
            shutil.copy(picture, coco / f"{number:012d}.jpg")
        own = self.clone / "downloads" / "coco"
        shutil.copytree(self.scenes.scenes / "train2014", own / "train2014")
        shutil.copytree(self.scenes.scenes / "annotations", own / "annotations")
        self._benchmarks(self.clone / "data" / "benchmarks", pictures[0])

    def _benchmarks(self, folder: Path, picture: Path) -> None:
        scenes = self.scenes.scenes
        for source, target in (
            ("val2014", "coco/val2014"),
            ("annotations", "coco/annotations"),
            ("pope/coco", "pope/coco"),
            ("gqa/images", "gqa/images"),
        ):
            shutil.copytree(scenes / source, folder / target)
        (folder / "gqa" / "questions1.2").mkdir()
        shutil.copy(scenes / "gqa" / "testdev_balanced_questions.json", folder / "gqa" / "questions1.2")
        for split in ("val2014", "test2015"):
            named = folder / "coco" / split / f"COCO_{split}_000000262148.jpg"
            named.parent.mkdir(exist_ok=True)
            shutil.copy(picture, named)
        (folder / "vqav2").mkdir()
        for split, name, record in (
            ("val2014", "v2_OpenEnded_mscoco_val2014_questions", test_vqav2_reader.QUESTION),
            ("val2014", "v2_mscoco_val2014_annotations", test_vqav2_reader.ANNOTATION),
            ("test-dev2015", "v2_OpenEnded_mscoco_test-dev2015_questions", test_vqav2_reader.QUESTION),
        ):
            content = {"data_subtype": split, name.rpartition("_")[2]: [record]}
            (folder / "vqav2" / f"{name}.json").write_text(json.dumps(content))
        mme = folder / "mme" / "MME_Benchmark_release_version"
        test_mme_reader.write(mme, "existence", "0001")
        shutil.copy(picture, mme / "existence" / "0001.jpg")
        row = test_mmmu_reader.ROW | {"image_1": {"bytes": picture.read_bytes(), "path": "a.jpg"}}
        test_mmmu_reader.write(folder / "mmmu" / "Art_Theory", [row])

    @cached_property
    def _writers(self) -> dict[tuple[str, str], Callable[[Path], object]]:
        """(repository, file name) to what writes it."""
        authors = "hustvl/OmniMamba"
        vits = RECORDED / "vision_weights.safetensors"
        return {
            (authors, "OmniMamba-1.3b.pth"): self._omnimamba,
            (authors, "pretokenized_coco_train2014.jsonl"): _pretokenized,
            (authors, "share-captioner_coco_lcs_676k_1121.json"): lambda path: _conversations(path, TALK[:2]),
            (authors, "sharegpt4v_llava_v1_5_lvis4v_lrv_mix1231k.json"): lambda path: _conversations(path, TALK),
            ("state-spaces/mamba2-1.3b", "pytorch_model.bin"): self._mamba2,
            ("EleutherAI/gpt-neox-20b", "tokenizer.json"): lambda path: shutil.copy(self.scenes.tokenizer, path),
            ("timm/vit_large_patch14_reg4_dinov2.lvd142m", "model.safetensors"): lambda path: shutil.copy(vits, path),
            ("timm/vit_so400m_patch14_siglip_384.webli", "model.safetensors"): lambda path: shutil.copy(vits, path),
            ("peizesun/llamagen_t2i", "vq_ds16_t2i.pt"): _vq,
        }

    @cached_property
    def _language(self) -> dict[str, Tensor]:
        model = OmniMamba(load(self.clone / "configs" / "stage2_unified.yaml").model)
        initialise(model, 0)
        return dict(model.state_dict())

    def _omnimamba(self, path: Path) -> None:
        published = to_published(PublishedWeights(self._language))
        torch.save({name: value.half() for name, value in published.items()}, path)

    def _mamba2(self, path: Path) -> None:
        torch.save(mamba2_weights(self._language), path)


def _pretokenized(path: Path) -> None:
    codes = np.random.default_rng(0).integers(VQ_16.codebook_size, size=(PICTURES, VQ_16.side**2))
    captions = [f"a red circle {number}" for number in range(CAPTIONS)]
    lines = [{"captions": captions, "tokens": row} for row in codes.tolist()]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _conversations(path: Path, turns: list[dict[str, str]]) -> None:
    """One conversation on each picture, and one on none."""
    entries: list[dict[str, Any]] = [
        {"id": str(number), "image": f"coco/train2017/{number:012d}.jpg", "conversations": turns}
        for number in range(PICTURES)
    ]
    path.write_text(json.dumps([*entries, {"id": "text", "conversations": turns}]))


def _vq(path: Path) -> None:
    weights = load_file(RECORDED / "vq_weights.safetensors")
    generator = torch.Generator().manual_seed(0)
    weights[CODEBOOK] = torch.randn(VQ_16.codebook_size, VQ_16.code_dim, generator=generator)
    torch.save({"model": weights}, path)
