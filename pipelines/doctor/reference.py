"""Compares this model with recorded values of the published one.

For the language model these are logits, losses, gradients and greedy ids; see `pipelines.doctor.encoders` for the ViTs
and the VQ tokenizer.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from modules.objectives import task_losses
from modules.omnimamba.config import TASKS, LoraConfig, ModelConfig, Task, VisionConfig
from modules.omnimamba.model import OmniMamba
from modules.published import from_published, ours
from pipelines.doctor.comparison import Comparison, Row, compare_ids, compare_values
from pipelines.doctor.encoders import vision_rows, vq_rows

LOGITS_AND_LOSSES, GRADIENTS = 5e-4, 5e-3
"""Largest relative errors allowed. The values were recorded in float32 on a GPU whose kernels use TF32 internally. A
float64 computation of the same formulas differs by up to 8e-5 on logits and 2e-3 on gradients of A_log and dt_bias."""
KINDS = {"d_model": "language model", "dino": "vision", "codebook": "vq"}
"""Keys of STEM.json that say what was recorded."""


def compare_with_reference(file: Path) -> Comparison:
    """Compute the values recorded next to ``file``, of the language model, the ViTs or the VQ tokenizer, and compare.

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: ``file`` does not say what was recorded, or the weights do not match its sizes.
    """
    sizes, weights, recorded = _read(file)
    kinds = [kind for key, kind in KINDS.items() if key in sizes]
    if len(kinds) != 1:
        raise ValueError(
            f"{file} does not say what was recorded: exactly one of {', '.join(KINDS)} must be among its keys, "
            f"which are {', '.join(sizes)}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recorded = {name: tensor.to(device) for name, tensor in recorded.items()}
    if kinds == ["vision"]:
        rows = vision_rows(sizes, weights, recorded)
    elif kinds == ["vq"]:
        rows = vq_rows(sizes, load_file(weights), recorded, device)
    else:
        rows = _language_rows(sizes, load_file(weights), recorded, device)
    return Comparison(torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", tuple(rows))


def _read(file: Path) -> tuple[dict[str, Any], Path, dict[str, Tensor]]:
    """Sizes, path of the weights, recorded tensors."""
    stem = file.with_suffix("")
    paths = [
        file,
        stem.with_name(stem.name + "_weights.safetensors"),
        stem.with_name(stem.name + "_tensors.safetensors"),
    ]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; a reference is STEM.json, with STEM_weights and STEM_tensors next to it"
            )
    return json.loads(file.read_text(encoding="utf-8")), paths[1], load_file(paths[2])


def _language_rows(
    sizes: dict[str, Any], weights: Mapping[str, Tensor], recorded: Mapping[str, Tensor], device: torch.device
) -> list[Row]:
    model = OmniMamba(_config(sizes, weights))
    model.load_state_dict(from_published(weights).language)
    model = model.to(device).eval()
    rows = [row for task in TASKS for row in _compare_task(model, task, _inputs(task, recorded), recorded)]
    return rows + _compare_greedy(model, recorded)


def _config(sizes: dict[str, Any], weights: Mapping[str, Tensor]) -> ModelConfig:
    shapes = {ours(name): tuple(value.shape) for name, value in weights.items()}
    projector_hidden, vision_width = shapes["projector.0.weight"]
    return ModelConfig(
        d_model=sizes["d_model"],
        n_layer=sizes["n_layer"],
        d_state=sizes["d_state"],
        d_conv=sizes["d_conv"],
        expand=sizes["expand"],
        headdim=sizes["headdim"],
        chunk_size=sizes["chunk_size"],
        norm_eps=sizes["norm_eps"],
        gated_norm_eps=sizes["gated_norm_eps"],
        vocab_size=shapes["text_embedding.weight"][0],
        image_vocab=shapes["image_table.weight"][0],
        image_tokens=sizes["image_tokens"],
        caption_length=sizes["caption_len"],
        mmu_text_length=sizes["text_len"],
        mmu_positions=shapes["mmu_positions"][1],
        t2i_positions=shapes["t2i_positions"][1],
        projector_hidden=projector_hidden,
        image_mlp_hidden=shapes["image_mlp.0.weight"][0],
        adapters=LoraConfig(rank=sizes["lora_r"], alpha=sizes["lora_alpha"]),
        vision=VisionConfig(kind="features", given_patches=sizes["patches"], given_width=vision_width),
    )


def _inputs(task: Task, recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if task == "t2i":
        return {name: recorded[f"t2i.{name}"] for name in ("caption_ids", "image_ids")}
    return {
        "features": recorded["mmu.vision_features"],
        "input_ids": recorded["mmu.input_ids"],
        "labels": recorded["mmu.labels"],
    }


def _compare_task(model: OmniMamba, task: Task, inputs: dict[str, Tensor], recorded: Mapping[str, Tensor]) -> list[Row]:
    with torch.no_grad():
        logits = model.logits(task, inputs)
    model.zero_grad()
    loss = task_losses(model({task: inputs}))[task]
    torch.autograd.backward(loss)
    rows = [
        compare_values(f"{task}.logits", logits, recorded[f"{task}.logits"], LOGITS_AND_LOSSES),
        compare_values(f"{task}.loss", loss, recorded[f"{task}.loss"], LOGITS_AND_LOSSES),
    ]
    parameters = dict(model.named_parameters())
    prefix = f"{task}.grad."
    for name in sorted(name for name in recorded if name.startswith(prefix)):
        gradient = parameters[_our_name(name.removeprefix(prefix))].grad
        assert gradient is not None
        rows.append(compare_values(name, gradient.view_as(recorded[name]), recorded[name], GRADIENTS))
    return rows


def _compare_greedy(model: OmniMamba, recorded: Mapping[str, Tensor]) -> list[Row]:
    image_ids = model.generate_image_ids(recorded["t2i.caption_ids"], uniforms_BI=None)
    answer = recorded["mmu.greedy_text_ids"]
    prompt = recorded["mmu.input_ids"][:, : 4 + recorded["mmu.labels"].shape[1] // 3]
    text_ids = model.continue_text(recorded["mmu.vision_features"], prompt, max_new_tokens=answer.shape[1], end_id=None)
    return [
        compare_ids("t2i.greedy_image_ids", image_ids, recorded["t2i.greedy_image_ids"]),
        compare_ids("mmu.greedy_text_ids", text_ids, answer),
    ]


def _our_name(name: str) -> str:
    return ours(name if name.startswith("projector.") else f"llm_backbone.mamba.{name}")
