"""The kernels against the reference on a GPU: outputs and gradients of a row of several sequences."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from modules.objectives import task_losses
from modules.omnimamba.backbone import Recompute
from modules.omnimamba.config import TASKS
from tests.unit.modules.omnimamba.conftest import SAMPLING, TINY, batch_of, build, share_of_teacher_forcing

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

CONFIG = replace(TINY, d_model=64, d_state=32, headdim=16, chunk_size=32)
"""The smallest sizes that the kernels take: products of at least 16 x 16, strides that are multiples of 8."""
TOLERANCE = 5e-3
"""Relative norm: the kernels multiply in tf32, with 10 bits of mantissa."""


def test_losses_and_gradients_equal_the_references() -> None:
    reference = build(CONFIG)
    ours = build(CONFIG).cuda()
    batch = batch_of(CONFIG)
    on_gpu = {task: {name: value.cuda() for name, value in part.items()} for task, part in batch.items()}
    expected, found = task_losses(reference(batch)), task_losses(ours(on_gpu))
    for task in expected:
        assert found[task].item() == pytest.approx(expected[task].item(), rel=1e-3)
    torch.autograd.backward(sum(expected.values()))
    torch.autograd.backward(sum(found.values()))
    gradients = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        truth = gradients[name].grad
        assert truth is not None
        assert parameter.grad is not None
        assert (parameter.grad.cpu() - truth).norm() <= TOLERANCE * truth.norm() + 1e-7, name


def test_generation_continues_what_prefill_computed() -> None:
    model, batch = build(CONFIG).cuda(), batch_of(CONFIG)["t2i"]
    on_gpu = {name: value.cuda() for name, value in batch.items()}
    ids = model.generate_image_ids(on_gpu["caption_ids"], uniforms_BI=None)
    logits = model.logits("t2i", {**on_gpu, "image_ids": ids})
    start = CONFIG.caption_length + 3
    assert torch.equal(logits[:, start : start + CONFIG.image_tokens].argmax(-1), ids)


# a few of the 80 numbers lie as close to a step of the distribution as tf32 or bf16 is exact
@pytest.mark.parametrize(("compute", "share"), [(torch.float32, 0.95), (torch.bfloat16, 0.85)])
@pytest.mark.parametrize("settings", SAMPLING)
@pytest.mark.parametrize("vocabularies", ["decoupled", "shared"])
def test_drawn_tokens_are_those_of_teacher_forcing(
    settings: dict[str, Any], compute: torch.dtype, share: float, vocabularies: str
) -> None:
    """Most tokens come out of a recorded graph, each by its own uniform number and position."""
    model = build(replace(CONFIG, image_tokens=16, t2i_positions=30, vocabularies=vocabularies)).cuda()
    model.compute = compute
    assert share_of_teacher_forcing(model, settings) > share


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_a_few_tokens_are_the_first_of_many(tokens: int) -> None:
    """With and without a graph."""
    many, few = (replace(CONFIG, image_tokens=n, t2i_positions=30) for n in (16, tokens))
    captions = batch_of(many)["t2i"]["caption_ids"].cuda()
    uniforms = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)).cuda()
    first = build(few).cuda().generate_image_ids(captions, uniforms_BI=uniforms[:, :tokens])
    assert torch.equal(first, build(many).cuda().generate_image_ids(captions, uniforms_BI=uniforms)[:, :tokens])


def test_answers_continue_what_prefill_computed() -> None:
    model, batch = build(CONFIG).cuda(), batch_of(CONFIG)["mmu"]
    on_gpu = {name: value.cuda() for name, value in batch.items()}
    prompt = on_gpu["input_ids"][:, :8]
    ids = model.continue_text(on_gpu["features"], prompt, max_new_tokens=3, end_id=None)
    logits = model.logits("mmu", {**on_gpu, "input_ids": torch.cat([prompt, ids], dim=1)})
    assert torch.equal(logits[:, -4:-1].argmax(-1), ids)


def test_adapters_folded_into_the_weights_compute_the_same() -> None:
    model, batch = build(CONFIG).cuda(), batch_of(CONFIG)
    plain = build(replace(CONFIG, lora="none")).cuda()
    for task in TASKS:
        weights = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
        for number, layer in enumerate(model.backbone.layers):
            weights[f"backbone.layers.{number}.mixer.in_proj.weight"] = layer.mixer.in_proj.merged(task)
        plain.load_state_dict(weights)
        part = {name: value.cuda() for name, value in batch[task].items()}
        expected, found = model.logits(task, part), plain.logits(task, part)
        assert (found - expected).norm() <= TOLERANCE * expected.norm()


def test_bf16_losses_and_gradients_are_close_to_float32s() -> None:
    batch = {task: {name: value.cuda() for name, value in part.items()} for task, part in batch_of(CONFIG).items()}
    exact, rounded = build(CONFIG).cuda(), build(CONFIG).cuda()
    rounded.compute = torch.bfloat16
    expected, found = task_losses(exact(batch)), task_losses(rounded(batch))
    for task in expected:
        assert found[task].item() == pytest.approx(expected[task].item(), rel=2e-2)
    torch.autograd.backward(sum(expected.values()))
    torch.autograd.backward(sum(found.values()))
    gradients = dict(exact.named_parameters())
    for name, parameter in rounded.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        truth = gradients[name].grad
        assert truth is not None
        # eight bits of mantissa, through two layers
        assert (parameter.grad - truth).norm() <= 0.1 * truth.norm() + 1e-6, name


@pytest.mark.parametrize("level", ["projection", "block"])
def test_what_is_recomputed_gives_the_same_gradients(level: Recompute) -> None:
    batch = {task: {name: value.cuda() for name, value in part.items()} for task, part in batch_of(CONFIG).items()}
    kept, recomputed = build(CONFIG).cuda(), build(CONFIG).cuda()
    recomputed.backbone.choose(scan="auto", projection="fused", recompute=level)
    for model in (kept, recomputed):
        torch.autograd.backward(sum(task_losses(model(batch)).values()))
    gradients = dict(kept.named_parameters())
    for name, parameter in recomputed.named_parameters():
        truth = gradients[name].grad
        assert truth is not None
        assert parameter.grad is not None
        assert (parameter.grad - truth).norm() <= 1e-4 * truth.norm() + 1e-7, name
