"""The vision transformer against independent implementations: transformers' DINOv2 and SigLIP."""

import pytest
import torch
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from modules.omnimamba.config import VitConfig
from modules.omnimamba.vits import PatchEmbed, VisionTransformer, fit_positions

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "layer_norm_eps": 1e-6}
DINO = VitConfig(width=32, depth=3, heads=4, mlp_hidden=128, registers=4, class_token=True, layer_scale=True)
SIGLIP = VitConfig(width=32, depth=3, heads=4, mlp_hidden=72)
DINO_NAMES = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "reg_token": "embeddings.register_tokens",
    "blocks.": "encoder.layer.",
    ".attn.proj": ".attention.o_proj",
    ".attn.": ".attention.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
SIGLIP_NAMES = {
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks.": "encoder.layers.",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    ".attn.proj": ".self_attn.out_proj",
    ".attn.": ".self_attn.",
}
OLDER = (
    ("vision_model.", ""),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)
"""Names of earlier releases of transformers."""


def vit_of(config: VitConfig) -> VisionTransformer:
    """A transformer of which every parameter matters."""
    vit = VisionTransformer(config, patch_size=14, patches=16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return vit


def renamed(vit: VisionTransformer, names: dict[str, str]) -> dict[str, Tensor]:
    """Its weights under the peer's names, query, key and value apart."""
    result = {}
    for name, value in vit.state_dict().items():
        for theirs, mine in zip("qkv", value.chunk(3), strict=False):
            if "qkv" in name:
                result[name.replace("qkv", f"{theirs}_proj")] = mine
        if "qkv" not in name:
            result[name] = value
    for mine, theirs in names.items():
        result = {name.replace(mine, theirs): value for name, value in result.items()}
    return result


def load_into(peer: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    own = {}
    for name, value in peer.state_dict().items():
        known = name
        for old, new in OLDER:
            known = known.replace(old, new)
        own[name] = weights.pop(known, value)
    assert not weights, "names that the peer does not have"
    peer.load_state_dict(own)


def features_of(peer: torch.nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return peer.eval()(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]


def test_dinov2_equals_its_peer() -> None:
    vit = vit_of(DINO)
    weights = renamed(vit, DINO_NAMES)
    # the peer adds a position to the class token too
    weights["embeddings.cls_token"] = weights.pop("cls_token")
    positions = weights.pop("pos_embed")
    weights["embeddings.position_embeddings"] = torch.cat([torch.zeros(1, 1, 32), positions], dim=1)
    peer = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(hidden_size=32, mlp_ratio=4, num_register_tokens=4, **SIZES)
    )
    load_into(peer, weights)
    pixels = torch.randn(2, 3, 56, 56)
    theirs = features_of(peer, pixels)[:, 5:]
    torch.testing.assert_close(vit(pixels), theirs, rtol=1e-4, atol=1e-4)  # float32, sums in another order
    assert theirs.std() > 0.1


def test_siglip_equals_its_peer() -> None:
    vit = vit_of(SIGLIP)
    weights = renamed(vit, SIGLIP_NAMES)
    weights["embeddings.position_embedding.weight"] = weights.pop("pos_embed")[0]
    config = SiglipVisionConfig(hidden_size=32, intermediate_size=72, hidden_act="gelu", **SIZES)
    peer = SiglipVisionModel(config)
    load_into(peer, weights)
    pixels = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(vit(pixels), features_of(peer, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [56, 61])
def test_patches_are_a_convolution_whose_windows_do_not_overlap(size: int) -> None:
    embed = PatchEmbed(8, 14)
    pixels = torch.randn(2, 3, size, size)
    expected = embed.proj(pixels).flatten(2).transpose(1, 2)
    assert expected.shape == (2, 16, 8)
    torch.testing.assert_close(embed(pixels), expected, rtol=1e-4, atol=1e-5)


def test_positions_of_another_grid_keep_what_they_say() -> None:
    def ramp(side: int) -> Tensor:
        centres = (torch.arange(side) + 0.5) / side
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        return torch.stack([rows, columns, torch.ones(side, side)], dim=-1).view(1, side * side, 3)

    found = fit_positions(ramp(37), 27 * 27)
    inner = torch.zeros(27, 27, dtype=torch.bool)
    inner[3:-3, 3:-3] = True  # the edges are flattened
    torch.testing.assert_close(found[:, inner.flatten()], ramp(27)[:, inner.flatten()], rtol=0, atol=1e-3)
    assert fit_positions(found, 27 * 27) is found
