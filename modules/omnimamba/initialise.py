"""Initial values. Each parameter's value depends only on the seed and its name, not on the rest of the model."""

import math

import torch
from torch import Tensor, nn

from modules.omnimamba.config import ModelConfig
from modules.omnimamba.model import OmniMamba
from modules.seeds import keyed_seed

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
"""Range of the initial time steps (Mamba-2's own)."""
CPU = torch.device("cpu")
EMBEDDING_STD = 0.02
"""Standard deviation of the T2I positions; the others are set in the configuration."""


@torch.no_grad()
def initialise(model: OmniMamba, seed: int, device: torch.device = CPU) -> None:
    """Set every parameter of ``model``, in place, except frozen encoders, which have their own weights.

    ``device`` draws the numbers. A GPU is faster, for benchmarks; it draws others than a CPU.
    """
    for name, parameter in model.named_parameters():
        if name.startswith("vision."):
            continue
        generator = torch.Generator(device).manual_seed(keyed_seed(seed, name))
        value = _value(name, parameter.shape, model.config, generator)
        parameter.copy_(value.to(parameter.dtype))


def _value(name: str, shape: torch.Size, config: ModelConfig, generator: torch.Generator) -> Tensor:
    value = torch.empty(shape, device=generator.device)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "A_log":
        return value.uniform_(*config.A_init_range, generator=generator).log()
    if leaf == "dt_bias":  # so that softplus(dt_bias) is log-uniform in [DT_MIN, DT_MAX]
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        dt = value.uniform_(low, high, generator=generator).exp().clamp(min=DT_FLOOR)
        return dt + (-(-dt).expm1()).log()
    if leaf == "D" or "norm." in name:
        return value.fill_(1)
    if leaf == "t2i_positions" or name.startswith(("text_embedding", "image_table", "mmu_positions")):
        spread = {
            "text_embedding": config.text_embedding_std,
            "image_table": config.image_table_std,
            "mmu_positions": config.mmu_positions_std,
        }
        return value.normal_(0, spread.get(name.split(".")[0], EMBEDDING_STD), generator=generator)
    if "lora_B" in name:
        return value.zero_()
    if leaf == "bias":
        return value.zero_()
    nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
    return value / math.sqrt(config.n_layer) if "out_proj" in name else value
