"""The kernels against the reference on a GPU: outputs and gradients of a row of several sequences."""

from dataclasses import replace

import pytest
import torch

from modules.objectives import task_losses
from tests.unit.modules.omnimamba.conftest import TINY, batch_of, build

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
    ids = model.generate_image_ids(on_gpu["caption_ids"], uniforms=None)
    logits = model.logits("t2i", {**on_gpu, "image_ids": ids})
    start = CONFIG.caption_length + 3
    assert torch.equal(logits[:, start : start + CONFIG.image_tokens].argmax(-1), ids)
