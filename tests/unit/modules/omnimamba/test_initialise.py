"""Initial values: by name, and as Mamba-2 wants them."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba

from .conftest import TINY


def weights(config=TINY, seed=0):  # type: ignore[no-untyped-def]
    model = OmniMamba(config)
    initialise(model, seed)
    return dict(model.named_parameters())


def test_a_value_depends_on_seed_and_name_alone() -> None:
    one, deeper, other = weights(), weights(replace(TINY, n_layer=2, lora="none")), weights(seed=1)
    for name, value in deeper.items():
        assert torch.equal(value, one[name]), name
    assert not torch.equal(one["text_embedding.weight"], other["text_embedding.weight"])
    layers = [one[f"backbone.layers.{i}.mixer.in_proj.weight"] for i in range(2)]
    assert not torch.equal(*layers)


def test_time_steps_and_decay_rates_are_mamba2s() -> None:
    given = weights(replace(TINY, d_model=512, headdim=2))
    dt = F.softplus(given["backbone.layers.0.mixer.dt_bias"])
    assert dt.min() >= 1e-4
    assert 0.9e-3 < dt.min() < 2e-3
    assert 0.05 < dt.max() <= 0.1001
    rates = given["backbone.layers.0.mixer.A_log"].exp()
    assert 1 <= rates.min() < 1.5
    assert 15 < rates.max() <= 16
    chosen = weights(replace(TINY, d_model=512, headdim=2, A_init_range=(0.05, 1.0)))
    rates = chosen["backbone.layers.0.mixer.A_log"].exp()
    assert 0.05 <= rates.min() < 0.06
    assert 0.98 < rates.max() <= 1
    assert (given["backbone.layers.0.mixer.D"] == 1).all()


def test_scales() -> None:
    given = weights(replace(TINY, d_model=256))
    assert abs(given["text_embedding.weight"].std() - 0.02) < 0.001
    spread = weights(replace(TINY, d_model=256, text_embedding_std=0.5, image_table_std=0.2, mmu_positions_std=0.1))
    assert abs(spread["text_embedding.weight"].std() - 0.5) < 0.025
    assert abs(spread["image_table.weight"].std() - 0.2) < 0.01
    assert abs(spread["mmu_positions"].std() - 0.1) < 0.005
    fan_in, layers = 512, 2
    bound = (1 / fan_in) ** 0.5 / layers**0.5  # Kaiming uniform with a = sqrt(5), over sqrt(n_layer)
    out_proj = given["backbone.layers.0.mixer.out_proj.weight"]
    assert 0.99 * bound < out_proj.abs().max() <= bound
    assert not given["backbone.layers.0.mixer.in_proj.lora_B.mmu.weight"].any()
    assert given["backbone.layers.0.mixer.in_proj.lora_A.mmu.weight"].any()
    assert (given["backbone.norm.weight"] == 1).all()
