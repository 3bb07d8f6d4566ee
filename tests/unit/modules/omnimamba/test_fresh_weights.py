"""What is generated after an optimizer step comes from the new weights: no cast, cache or state outlives it."""

import pytest
import torch
from torch import Tensor

from modules.objectives import task_losses
from modules.omnimamba.model import OmniMamba

from .conftest import TINY, batch_of, build


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_generating_optimizing_and_generating_again(compute: torch.dtype) -> None:
    model = build()
    model.compute = compute
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = generated(model)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(list(task_losses(model.train()(batch_of())).values()))  # type: ignore[arg-type]
        optimizer.step()
        after = generated(model.eval())
        fresh = OmniMamba(TINY)
        fresh.compute = compute
        fresh.load_state_dict(model.state_dict())
        for one, other in zip(after, generated(fresh.eval()), strict=True):
            assert torch.equal(one, other)
        assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        before = after


def generated(model: OmniMamba) -> list[Tensor]:
    """Answers and codes, and their likelihoods, which move before the ids do."""
    batch = batch_of()
    answers = model.continue_text(
        batch["mmu"]["features"], batch["mmu"]["input_ids"][:, :6], max_new_tokens=5, end_id=None
    )
    codes = model.generate_image_ids(batch["t2i"]["caption_ids"], uniforms_BI=None)
    with torch.no_grad():
        return [answers, codes, model.logits("t2i", batch["t2i"])]
