"""Compares the model with recorded numbers of the published one: logits, losses, gradients, greedy ids."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from modules.objectives import task_losses
from modules.omnimamba.adapters import TASKS, Task
from modules.omnimamba.config import LoraConfig, ModelConfig, VisionConfig
from modules.omnimamba.model import OmniMamba
from modules.published import ours, weights_from_published

LOGITS_AND_LOSSES, GRADIENTS = 5e-4, 5e-3
"""Largest relative errors. The numbers were recorded in float32 on a GPU whose kernels use tf32 inside; a float64
computation of the same formulas differs by up to 8e-5 on logits and 2e-3 on the gradients of A_log and dt_bias."""


@dataclass(frozen=True)
class Comparison:
    """Rows (name, relative error, tolerance); ids count as an error of 1 where they differ."""

    device: str
    rows: tuple[tuple[str, float, float], ...]

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance."""
        return all(error <= tolerance for _, error, tolerance in self.rows)

    def lines(self) -> list[str]:
        """The table as text, with a verdict a row."""
        width = max(len(name) for name, _, _ in self.rows)
        lines = [f"{'on ' + self.device:<{width}}  {'error':>9}  {'allowed':>9}"]
        for name, error, tolerance in self.rows:
            lines.append(f"{name:<{width}}  {error:9.2e}  {tolerance:9.2e}  {'ok' if error <= tolerance else 'FAILED'}")
        failed = sum(not error <= tolerance for _, error, tolerance in self.rows)  # so that NaN fails
        lines.append("all within tolerance" if not failed else f"{failed} of {len(self.rows)} above tolerance")
        return lines


def compare_with_reference(file: Path) -> Comparison:
    """Compute what was recorded beside ``file`` and compare.

    Raises:
        FileNotFoundError: one of the three files is missing.
    """
    sizes, weights, recorded = _read(file)
    model = OmniMamba(_config(sizes, weights))
    model.load_state_dict(weights_from_published(weights))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    recorded = {name: tensor.to(device) for name, tensor in recorded.items()}
    rows: list[tuple[str, float, float]] = []
    for task in TASKS:
        rows += _compare_task(model, task, _inputs(task, recorded), recorded)
    rows += _compare_ids(model, recorded)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Comparison(name, tuple(rows))


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    stem = file.with_suffix("")
    paths = [
        file,
        stem.with_name(stem.name + "_weights.safetensors"),
        stem.with_name(stem.name + "_tensors.safetensors"),
    ]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; a reference is STEM.json with STEM_weights and STEM_tensors beside it"
            )
    return json.loads(file.read_text()), load_file(paths[1]), load_file(paths[2])


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


def _compare_task(
    model: OmniMamba, task: Task, inputs: dict[str, Tensor], recorded: Mapping[str, Tensor]
) -> list[tuple[str, float, float]]:
    with torch.no_grad():
        logits = model.logits(task, inputs)
    model.zero_grad()
    loss = task_losses(model({task: inputs}))[task]
    torch.autograd.backward(loss)
    rows = [
        (f"{task}.logits", _error(logits, recorded[f"{task}.logits"]), LOGITS_AND_LOSSES),
        (f"{task}.loss", _error(loss, recorded[f"{task}.loss"]), LOGITS_AND_LOSSES),
    ]
    parameters = dict(model.named_parameters())
    prefix = f"{task}.grad."
    for name in sorted(name for name in recorded if name.startswith(prefix)):
        gradient = parameters[_our_name(name.removeprefix(prefix))].grad
        assert gradient is not None
        rows.append((name, _error(gradient.view_as(recorded[name]), recorded[name]), GRADIENTS))
    return rows


def _compare_ids(model: OmniMamba, recorded: Mapping[str, Tensor]) -> list[tuple[str, float, float]]:
    image_ids = model.generate_image_ids(recorded["t2i.caption_ids"], uniforms=None)
    answer = recorded["mmu.greedy_text_ids"]
    prompt = recorded["mmu.input_ids"][:, : 4 + recorded["mmu.labels"].shape[1] // 3]
    text_ids = model.continue_text(recorded["mmu.vision_features"], prompt, max_new_tokens=answer.shape[1], end_id=None)
    return [
        ("t2i.greedy_image_ids", float(not torch.equal(image_ids, recorded["t2i.greedy_image_ids"])), 0.0),
        ("mmu.greedy_text_ids", float(not torch.equal(text_ids, answer)), 0.0),
    ]


def _our_name(name: str) -> str:
    return ours(name if name.startswith("projector.") else f"llm_backbone.mamba.{name}")


def _error(value: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((value.detach().double() - truth.double()).norm() / truth.double().norm())
