"""Published checkpoints: every name both ways, and what is in them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.weight_names import match_names, shapes_of
from modules.published import (
    MAMBA2_LACKS,
    PublishedWeights,
    from_mamba2,
    from_published,
    load_language,
    ours,
    published,
    to_published,
)
from tests.mamba2_files import mamba2_weights
from tests.unit.modules.omnimamba.conftest import TINY, build
from tests.unit.modules.omnimamba.recorded import published_shapes

HEADS = ("llm_backbone.mamba.lm_head.weight", "llm_backbone.mamba.img_head.weight")


def whole() -> PublishedWeights:
    """A small checkpoint with something of every part."""
    language = {name: value.clone() for name, value in build().state_dict().items()}
    vision = {"dino_featurizer.cls_token": torch.rand(1, 1, 4), "siglip_featurizer.norm.bias": torch.rand(3)}
    vq = {"quant_conv.bias": torch.rand(8), "quantize.codebook_used": torch.rand(65536)}
    return PublishedWeights(language, vision, vq, HEADS)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_name_of_ours_goes_there_and_back() -> None:
    for name, _ in OmniMamba(TINY).named_parameters():
        assert ours(published(name)) == name


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (
            "llm_backbone.mamba.backbone.layers.7.mixer.in_proj.t2i_lora_B0.weight",
            "backbone.layers.7.mixer.in_proj.lora_B.t2i.weight",
        ),
        ("llm_backbone.mamba.backbone.layers.0.norm.weight", "backbone.layers.0.norm.weight"),
        ("llm_backbone.mamba.backbone.norm_f.weight", "backbone.norm.weight"),
        ("llm_backbone.mamba.backbone.img_embeddings.project_in.projector.4.bias", "image_mlp.4.bias"),
        ("projector.projector.0.weight", "projector.0.weight"),
    ],
)
def test_names(theirs: str, mine: str) -> None:
    assert ours(theirs) == mine
    assert published(mine) == theirs


def test_every_key_of_the_published_checkpoint_has_its_place() -> None:
    shapes = published_shapes()
    assert len(shapes) == 1674
    zero = torch.zeros(())
    weights = {name: zero.expand(shape) for name, shape in shapes.items()}
    parts = from_published(weights)
    vision = VisionConfig(kind="dino_siglip", image_size=384, patch_size=14)
    with torch.device("meta"):
        model = OmniMamba(ModelConfig(vision=vision))
    report = match_names("published", shapes_of(parts.language), shapes_of(model.state_dict()))
    assert len(report.loaded) == len(parts.language)
    assert parts.tied == HEADS
    assert len(parts.language) + len(parts.vision) + len(parts.vq) + len(parts.tied) == 1674
    assert parts.lines() == [
        f"{48 * 13 + 13} tensors: language model",
        "6 tensors: projector",
        f"{len([name for name in shapes if 'dino' in name])} tensors: DINOv2",
        f"{len([name for name in shapes if 'siglip' in name])} tensors: SigLIP",
        f"{len([name for name in shapes if 'vqvae' in name])} tensors: VQ tokenizer",
        "2 tensors: heads equal to their tables",
    ]
    assert shapes_of(to_published(parts)) == shapes


def test_a_checkpoint_goes_there_and_back_unchanged() -> None:
    parts = whole()
    weights = to_published(parts)
    assert all(head in weights for head in HEADS)
    assert weights["llm_backbone.mamba.backbone.pos_embed"].shape == (1, TINY.t2i_positions, TINY.d_model)
    back = from_published(weights)
    assert same(back.language, parts.language)
    assert same(back.vision, parts.vision)
    assert same(back.vq, parts.vq)
    assert sorted(back.tied) == sorted(HEADS)
    assert same(to_published(back), weights)


def test_parts_may_be_absent() -> None:
    parts = from_published({"projector.projector.0.bias": torch.zeros(3)})
    assert list(parts.language) == ["projector.0.bias"]
    assert (parts.vision, parts.vq, parts.tied) == ({}, {}, ())


def test_the_record_of_codebook_use_is_there_for_the_published_code() -> None:
    parts = PublishedWeights({}, {}, {"quant_conv.bias": torch.rand(8)})
    weights = to_published(parts)
    assert weights["llm_backbone.vqvae.quantize.codebook_used"].shape == (65536,)
    assert to_published(PublishedWeights({})) == {}


@pytest.mark.parametrize(
    "name",
    [
        "vision_backbone.clip_featurizer.norm.weight",
        "llm_backbone.vqvae.loss.weight",
        "llm_backbone.mamba.backbone.x",
        "optimizer.state",
    ],
)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"published checkpoint key '{name}' is not known"):
        from_published({name: torch.zeros(1), "projector.projector.0.bias": torch.zeros(1)})


def test_all_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match="published checkpoint keys 'x', 'y' are not known"):
        from_published({"x": torch.zeros(1), "y": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"our checkpoint key 'vision\.x' is not known"):
        to_published(PublishedWeights({"vision.x": torch.zeros(1)}))


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_is_not_its_table_is_refused(head: str) -> None:
    weights = to_published(whole())
    weights[head] = weights[head] + 1
    with pytest.raises(ValueError, match=f"{head} is not equal to llm_backbone.mamba.backbone"):
        from_published(weights)
    with pytest.raises(ValueError, match=f"{head} is not equal to"):
        from_published({head: weights[head]})


def test_mamba2_goes_there_and_back() -> None:
    model = build(replace(TINY, lora="none"))
    weights = mamba2_weights(model.state_dict())
    assert torch.equal(weights["lm_head.weight"], weights["backbone.embedding.weight"])
    assert all(name.startswith("backbone.") for name in weights if name != "lm_head.weight")
    back = from_mamba2(weights)
    expected = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith("backbone.") or name == "text_embedding.weight"
    }
    assert same(back.language, expected)
    assert back.tied == ("llm_backbone.mamba.lm_head.weight",)


def test_mamba2_1_3b_fills_the_full_language_model() -> None:
    prefix, added = "llm_backbone.mamba.", ("lora", "img_", "pos_embed", "caption")
    zero = torch.zeros(())
    shapes = {name.removeprefix(prefix): shape for name, shape in published_shapes().items() if name.startswith(prefix)}
    parts = from_mamba2(
        {name: zero.expand(shape) for name, shape in shapes.items() if not any(part in name for part in added)}
    )
    with torch.device("meta"):
        model = OmniMamba(ModelConfig())
    needed = shapes_of(model.state_dict())
    report = match_names("mamba2-1.3b", shapes_of(parts.language), needed, optional=MAMBA2_LACKS)
    assert len(report.loaded) == 48 * 9 + 2
    assert not [name for name in report.absent if name.endswith(("A_log", "norm.weight"))]


@pytest.mark.parametrize(
    "name", ["backbone.pos_embed", "img_head.weight", "backbone.layers.0.mixer.in_proj.mmu_lora_A0.weight"]
)
def test_mamba2_holds_nothing_of_omnimambas(name: str) -> None:
    with pytest.raises(ValueError, match=f"Mamba-2 checkpoint key '{name}' is not known"):
        from_mamba2({name: torch.zeros(2, 2)})


def test_a_language_model_is_loaded_and_the_rest_kept() -> None:
    source, model = build(), OmniMamba(TINY)
    initialise(model, 7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = from_mamba2(mamba2_weights(source.state_dict())).language
    report = load_language(model, weights, "mamba2", optional=MAMBA2_LACKS)
    after = model.state_dict()
    assert {name for name in after if torch.equal(after[name], source.state_dict()[name])} >= weights.keys()
    assert all(torch.equal(after[name], before[name]) for name in report.absent)
    assert set(report.loaded) | set(report.absent) == after.keys()
    assert {name.split(".")[0] for name in report.absent} == {
        "backbone",
        "caption_projection",
        "image_mlp",
        "image_table",
        "mmu_positions",
        "projector",
        "t2i_positions",
    }


def test_nothing_is_loaded_where_something_does_not_fit() -> None:
    source, model = build(), OmniMamba(TINY)
    initialise(model, 7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = dict(source.state_dict())
    del weights["projector.0.bias"]
    weights["backbone.layers.9.norm.weight"] = torch.zeros(16)
    weights["text_embedding.weight"] = torch.zeros(48, 16)
    with pytest.raises(ValueError, match=r"text_embedding\.weight 48 x 16 instead of 32 x 16") as caught:
        load_language(model, weights, "elsewhere")
    assert "1 missing: projector.0.bias; 1 unexpected: backbone.layers.9.norm.weight" in str(caught.value)
    assert same(before, model.state_dict())
