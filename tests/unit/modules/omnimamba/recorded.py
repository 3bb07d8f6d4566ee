"""The recorded numbers of the published encoders, and every key and shape of the published checkpoint."""

import json
import re
from pathlib import Path
from typing import Any

from modules.omnimamba.config import VisionConfig, VitConfig

RECORDED = Path(__file__).parents[2] / "reference"


def small_vision(dino: Path, siglip: Path | None = None, **other: Any) -> VisionConfig:
    """The sizes of vision.json."""
    return VisionConfig(
        **{
            "kind": "dino_siglip",
            "image_size": 56,
            "patch_size": 14,
            "dino": VitConfig(
                width=64,
                depth=4,
                heads=4,
                mlp_hidden=256,
                registers=4,
                class_token=True,
                layer_scale=True,
                weights=str(dino),
            ),
            "siglip": VitConfig(width=72, depth=3, heads=4, mlp_hidden=270, weights=str(siglip or dino)),
            **other,
        }
    )


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of all tensors; in the file <0-47> stands for one name per number."""
    shapes = {}
    for pattern, shape in json.loads((RECORDED / "checkpoint_keys_1b3.json").read_text()).items():
        numbered = re.fullmatch(r"(.*)<0-(\d+)>(.*)", pattern)
        names = [f"{numbered[1]}{i}{numbered[3]}" for i in range(int(numbered[2]) + 1)] if numbered else [pattern]
        shapes |= dict.fromkeys(names, tuple(shape))
    return shapes
