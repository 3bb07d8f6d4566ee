"""Compares the ViTs and the VQ tokenizer with recorded values of the published ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.omnimamba.config import VisionConfig, VitConfig
from modules.omnimamba.llamagen import LlamaGenVQ, exactly
from modules.omnimamba.llamagen_layers import LlamaGenConfig
from modules.omnimamba.vision import ENCODERS, DinoSiglip
from pipelines.doctor.comparison import Row, compare_ids, compare_values

FEATURES = 1e-4
"""Largest relative error allowed for float32 features; 6e-7 was measured on a CPU."""
QUANTIZED, DECODED = 1e-5, 1e-4
"""The same for codebook entries and decoded pixels, in full float32; 2e-8 and 3e-6 were measured on a CPU."""


def vision_rows(sizes: dict[str, Any], weights: Path, recorded: Mapping[str, Tensor]) -> list[Row]:
    """Compare the normalised inputs, each encoder's features, and the fused features."""
    vision = DinoSiglip(_vision_config(sizes, weights))
    names = [name for name, _, _ in ENCODERS]
    inputs = vision.normalised(recorded["pixels_unit"])
    features = vision.features(inputs)
    rows = [
        compare_values(f"{name}_{what}", value, recorded[f"{name}_{what}"], FEATURES)
        for what, values in (("input", inputs), ("features", features))
        for name, value in zip(names, values, strict=True)
    ]
    return [*rows, compare_values("fused", torch.cat(features, dim=2), recorded["fused"], FEATURES)]


def vq_rows(
    sizes: dict[str, Any], weights: Mapping[str, Tensor], recorded: Mapping[str, Tensor], device: torch.device
) -> list[Row]:
    """Compare the codes, their codebook entries, and the picture decoded from them."""
    config = LlamaGenConfig(
        image_size=sizes["image"],
        channels=sizes["channels"],
        channel_multipliers=tuple(sizes["channel_multipliers"]),
        res_blocks=sizes["res_blocks"],
        z_channels=sizes["z_channels"],
        codebook_size=sizes["codebook"],
        code_dim=sizes["code_dim"],
    )
    vq = LlamaGenVQ.from_weights("the reference", weights, config)[0].to(device)
    codes = vq.codes(recorded["image"])
    entries = vq.entries(codes)
    with exactly(device):  # a GPU would decode in TF32
        decoded = vq.pixels(entries)
    return [
        compare_ids("codes", codes, recorded["codes"]),
        compare_values("quantized", entries, recorded["quantized"], QUANTIZED),
        compare_values("decoded", decoded, recorded["decoded"], DECODED),
    ]


def _vision_config(sizes: dict[str, Any], weights: Path) -> VisionConfig:
    vits = {}
    for name, _, _ in ENCODERS:
        given = sizes[name]
        vits[name] = VitConfig(
            width=given["width"],
            depth=given["depth"],
            heads=given["heads"],
            mlp_hidden=int(given["width"] * given["mlp_ratio"]),
            registers=given.get("registers", 0),
            class_token=name == "dino",
            layer_scale=given.get("layer_scale", False),
            weights=str(weights),
        )
    return VisionConfig(
        kind="dino_siglip",
        image_size=sizes["image"],
        patch_size=sizes["patch"],
        dino=vits["dino"],
        siglip=vits["siglip"],
    )
