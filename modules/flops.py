"""FLOPs that training needs, and the peak FLOP rate of GPUs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from modules.omnimamba.model import IGNORE
from modules.stage_modules import StageModule

PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250),
    ("GH200", 989),
    ("H200", 989),
    ("H100 PCIe", 756),
    ("H100 NVL", 835),
    ("H100", 989),
    ("H800", 989),
    ("A100", 312),
    ("A800", 312),
    ("L40S", 362),
    ("A40", 150),
    ("A10G", 70),
    ("A10", 125),
)
"""Dense bf16 TFLOP/s by a word of the GPU's name, from NVIDIA's data sheets; the first match counts."""


def peak_tflops(gpu: str) -> float | None:
    """Peak dense bf16 TFLOP/s of the GPU with this name; None if it is not known."""
    return next((peak for word, peak in PEAKS if word in gpu), None)


def model_flops(stage: StageModule, batch: Mapping[str, Any], tokens: int) -> float:
    """Floating-point operations of a micro-batch's matrix products, forward and backward, without recomputation.

    Blocks count at all ``tokens`` positions, heads only at labelled ones. Adapters, scan and encoders are left out.
    """
    model, total = stage.model, 0.0
    for layer in model.backbone.layers:
        for weight in (layer.mixer.in_proj.weight, layer.mixer.out_proj.weight):  # type: ignore[union-attr]
            assert isinstance(weight, Tensor)
            total += tokens * _product(weight)
    heads = {
        "mmu": model.text_embedding.weight,
        "t2i": (model.text_embedding if model.image_table is None else model.image_table).weight,
    }
    for task in stage.stage.tasks:
        total += _labels(batch[task]) * _product(heads[task])
    return total


def _product(weight: Tensor) -> int:
    """Operations for one position: forward, gradient of the input, and gradient of the weight if it is trained."""
    size = getattr(weight, "ds_numel", weight.numel())  # under ZeRO 3 the parameter itself is empty
    return 2 * int(size) * (3 if weight.requires_grad else 2)


def _labels(part: Mapping[str, Tensor]) -> int:
    if "image_ids" in part:
        return part["image_ids"].numel()
    if "labelled" in part:
        return part["labelled"].numel()
    return int((part["labels"] != IGNORE).sum())
