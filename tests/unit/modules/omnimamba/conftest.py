from typing import Any

import pytest
import torch

from modules.omnimamba.config import LoraConfig, ModelConfig, VisionConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.sampling import choose

TINY = ModelConfig(
    d_model=16,
    n_layer=2,
    d_state=4,
    headdim=8,
    chunk_size=8,
    vocab_size=32,
    image_vocab=24,
    image_tokens=6,
    caption_length=5,
    mmu_text_length=7,
    mmu_positions=40,
    t2i_positions=20,
    projector_hidden=12,
    image_mlp_hidden=12,
    adapters=LoraConfig(rank=2, alpha=4, dropout=0.0),
    vision=VisionConfig(image_size=8, patch_size=4),
)


def build(config: ModelConfig = TINY) -> OmniMamba:
    """A model whose adapters do something: B starts at zero otherwise."""
    model = OmniMamba(config)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def batch_of(
    config: ModelConfig = TINY, mmu: int = 2, t2i: int = 3, seed: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ids = lambda high, *shape: torch.randint(0, high, shape, generator=generator)  # noqa: E731
    labels = ids(config.vocab_size, mmu, config.mmu_text_length)
    labels[:, ::3] = -100
    size, patches = config.vision.image_size, config.vision.patches
    features = torch.randn(mmu, patches, config.vision.width, generator=generator)
    return {
        "mmu": {
            "images": ids(256, mmu, 3, size, size).to(torch.uint8),
            "features": features,
            "input_ids": ids(config.vocab_size, mmu, config.mmu_text_length + 4),
            "labels": labels,
        },
        "t2i": {
            "caption_ids": ids(config.vocab_size, t2i, config.caption_length + 5),
            "image_ids": ids(config.image_vocab, t2i, config.image_tokens),
        },
    }


SAMPLING: list[dict[str, Any]] = [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}]


@torch.no_grad()
def share_of_teacher_forcing(model: OmniMamba, settings: dict[str, Any]) -> float:
    """How many of five images' drawn tokens are those that the logits of whole sequences give."""
    config, captions = model.config, batch_of(model.config, t2i=5)["t2i"]["caption_ids"].to(model.device)
    for block in model.backbone.layers:  # with initial time steps a state that stood still would hardly show
        block.mixer.dt_bias.fill_(3.0)
        block.mixer.A_log.fill_(-2.0)
    uniforms = torch.rand(5, config.image_tokens, generator=torch.Generator().manual_seed(0)).to(model.device)
    ids = model.generate_image_ids(captions, uniforms_BI=uniforms, **settings)
    assert len(ids.unique()) > 8
    assert torch.equal(ids, model.generate_image_ids(captions, uniforms_BI=uniforms, **settings))
    logits = model.logits("t2i", {"caption_ids": captions, "image_ids": ids})[..., -config.image_vocab :]
    start = config.caption_length + 3
    expected = [choose(logits[:, start + n], uniforms[:, n], **settings) for n in range(config.image_tokens)]
    return float((ids == torch.stack(expected, dim=1)).float().mean())


@pytest.fixture
def model() -> OmniMamba:
    return build()
