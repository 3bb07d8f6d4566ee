"""The frozen encoders: recorded numbers of the published ones, and what becomes of their weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modules.omnimamba.config import VisionConfig, VitConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.vision import DinoSiglip, PatchVision, build_vision
from modules.omnimamba.vits import VisionTransformer, unused_names
from modules.omnimamba.weight_names import match_names, shapes_of
from modules.trainable import set_trainable

from .conftest import TINY, batch_of
from .recorded import RECORDED, published_shapes, small_vision

WEIGHTS = RECORDED / "vision_weights.safetensors"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(RECORDED / "vision_tensors.safetensors")


def some_images(count: int = 3, size: int = 56) -> Tensor:
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(**other: object) -> DinoSiglip:
    return DinoSiglip(small_vision(WEIGHTS, **other))


def test_inputs_and_features_are_the_published_ones(tensors: dict[str, Tensor]) -> None:
    vision = build()
    inputs = vision.normalised(tensors["pixels_unit"])
    assert torch.equal(inputs[0], tensors["dino_input"])
    assert torch.equal(inputs[1], tensors["siglip_input"])
    for found, name in zip(vision.features(inputs), ("dino_features", "siglip_features"), strict=True):
        torch.testing.assert_close(found, tensors[name], rtol=1e-4, atol=1e-4)


def test_pixels_become_fused_features_dinov2_first(tensors: dict[str, Tensor]) -> None:
    vision, images = build(), (tensors["pixels_unit"] * 255).round().to(torch.uint8)
    fused = vision(images)
    assert fused.shape == (2, vision.config.patches, vision.config.width) == (2, 16, 136)
    # pixels were rounded to bytes
    assert (fused - tensors["fused"]).norm() < 0.01 * tensors["fused"].norm()
    assert torch.equal(fused, torch.cat(vision.features(vision.normalised(images / 255)), dim=2))


def test_a_chunked_batch_gives_the_same_features() -> None:
    images = some_images(5)
    torch.testing.assert_close(build(chunk=2)(images), build()(images), rtol=1e-4, atol=1e-5)
    assert build()(images[:0]).shape == (0, 16, 136)


def test_bfloat16_weights_compute_in_bfloat16() -> None:
    images = some_images()
    full, half = build()(images), build(dtype="bfloat16")(images)
    assert half.dtype == torch.float32
    assert torch.equal(half, half.bfloat16().float())
    assert 1e-4 < (half - full).norm() / full.norm() < 0.03


def test_autocast_does_not_change_the_features() -> None:
    images = some_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = build()(images)
    assert torch.equal(inside, build()(images))


def model_with_vits() -> OmniMamba:
    model = OmniMamba(replace(TINY, vision=small_vision(WEIGHTS)))
    initialise(model, 0)
    return model


def test_the_encoders_are_neither_parameters_nor_state_and_stay_frozen() -> None:
    model = model_with_vits()
    batch = batch_of()["mmu"]
    inputs = {"images": some_images(2), "input_ids": batch["input_ids"], "labels": batch["labels"]}
    model.train()({"mmu": inputs})["mmu"].logits.sum().backward()
    assert not [name for name in (*model.state_dict(), *dict(model.named_parameters())) if name.startswith("vision")]
    assert not any(name.startswith("vision.") for name in set_trainable(model, ["*"]).names)
    vits = model.vision.vits
    assert len(vits) == 2
    assert not any(
        parameter.requires_grad or parameter.grad is not None for vit in vits for parameter in vit.parameters()
    )
    assert not any(module.training for vit in vits for module in vit.modules())
    gradient = model.projector[0].weight.grad
    assert gradient is not None
    assert gradient.any()


def test_a_cast_of_the_model_does_not_reach_them() -> None:
    model = model_with_vits()
    before = model.vision(some_images())
    assert torch.equal(model.bfloat16().vision(some_images()), before)


def test_features_first_taken_in_inference_mode_serve_training_later() -> None:
    model = model_with_vits()
    with torch.inference_mode():
        model.vision(some_images())
    assert not any(parameter.is_inference() for vit in model.vision.vits for parameter in vit.parameters())


def test_a_model_that_sees_no_image_needs_no_weights() -> None:
    model = OmniMamba(replace(TINY, vision=small_vision(Path("nowhere.safetensors"))))
    initialise(model, 0)
    model({"t2i": batch_of()["t2i"]})
    with pytest.raises(FileNotFoundError, match=r"model\.vision\.dino\.weights=nowhere\.safetensors is not a file"):
        model.vision(some_images())


def test_the_report_tells_loaded_from_unused(tmp_path: Path) -> None:
    weights = load_file(WEIGHTS)
    weights["siglip_featurizer.attn_pool.latent"] = torch.zeros(1, 1, 72)
    weights["dino_featurizer.blocks.3.norm1.weight"] = torch.zeros(64)
    save_file(weights, tmp_path / "vits.safetensors")
    lines = DinoSiglip(small_vision(tmp_path / "vits.safetensors")).weights_report()
    assert [line.split(" from ")[0] for line in lines] == [
        "47 tensors",
        "3 unused on purpose: blocks.3.norm1.weight, norm.bias, norm.weight",
        "27 tensors",
        "3 unused on purpose: attn_pool.latent, norm.bias, norm.weight",
    ]
    assert PatchVision(VisionConfig()).weights_report() == []


def test_a_file_of_one_encoder_needs_no_prefix(tmp_path: Path) -> None:
    weights = load_file(WEIGHTS)
    for name in ("dino", "siglip"):
        prefix = f"{name}_featurizer."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        save_file(own, tmp_path / f"{name}.safetensors")
    save_file({f"vision_backbone.{key}": value for key, value in weights.items()}, tmp_path / "whole.safetensors")
    apart = DinoSiglip(small_vision(tmp_path / "dino.safetensors", tmp_path / "siglip.safetensors"))
    whole = DinoSiglip(small_vision(tmp_path / "whole.safetensors"))
    expected = build()(some_images())
    assert torch.equal(apart(some_images()), expected)
    assert torch.equal(whole(some_images()), expected)


def spoilt(tmp_path: Path, change) -> DinoSiglip:  # type: ignore[no-untyped-def]
    weights = load_file(WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / "spoilt.safetensors")
    return DinoSiglip(small_vision(tmp_path / "spoilt.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("dino_featurizer.cls_token"), "1 missing: cls_token"),
        (lambda w: w.update({"siglip_featurizer.cls_token": torch.zeros(1)}), "1 unexpected: cls_token"),
        (
            lambda w: w.update({"dino_featurizer.blocks.1.attn.qkv.bias": torch.zeros(64)}),
            r"1 of another shape: blocks\.1\.attn\.qkv\.bias 64 instead of 192",
        ),
        (
            lambda w: w.update({"dino_featurizer.pos_embed": torch.zeros(1, 17, 64)}),
            "pos_embed 1 x 17 x 64 instead of 1 x 16 x 64",
        ),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_named(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    vision = spoilt(tmp_path, change)
    for look in (vision.weights_report, lambda: vision(some_images())):
        with pytest.raises(ValueError, match=message):
            look()


def test_positions_of_a_larger_grid_are_resampled(tmp_path: Path) -> None:
    def enlarge(weights: dict[str, Tensor]) -> None:
        # a grid whose every position is the same stays so under resampling
        weights["dino_featurizer.pos_embed"] = torch.full((1, 25, 64), 0.3)

    def flatten(weights: dict[str, Tensor]) -> None:
        weights["dino_featurizer.pos_embed"] = torch.full((1, 16, 64), 0.3)

    (tmp_path / "flat").mkdir()
    large, flat = spoilt(tmp_path, enlarge), spoilt(tmp_path / "flat", flatten)
    torch.testing.assert_close(large(some_images()), flat(some_images()), rtol=1e-4, atol=1e-5)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"model\.vision\.dino\.weights=.*bad\.safetensors is not a readable"):
        DinoSiglip(small_vision(tmp_path / "bad.safetensors")).weights_report()


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.vision\.image_size=56 needs \(3, 56, 56\)"):
        build()(some_images(size=64))


def test_the_fingerprint_tells_weights_and_dtype_apart(tmp_path: Path) -> None:
    other = spoilt(tmp_path, lambda weights: weights["dino_featurizer.cls_token"].add_(1e-3))
    same = tmp_path / "same.safetensors"
    same.write_bytes(WEIGHTS.read_bytes())
    own = build().fingerprint
    assert len({own, other.fingerprint, build(dtype="bfloat16").fingerprint}) == 3
    assert own == DinoSiglip(small_vision(same)).fingerprint == build(chunk=3).fingerprint
    assert PatchVision(VisionConfig()).fingerprint == ""


def test_the_full_models_have_the_published_names_and_shapes() -> None:
    config = VisionConfig(kind="dino_siglip", image_size=384, patch_size=14)
    assert (config.patches, config.width) == (729, 2176)
    published = published_shapes()
    for name, vit, unused in (("dino", config.dino, 14 + 2), ("siglip", config.siglip, 12 + 2 + 13)):
        prefix = f"vision_backbone.{name}_featurizer."
        given = {key.removeprefix(prefix): shape for key, shape in published.items() if key.startswith(prefix)}
        with torch.device("meta"):
            needed = shapes_of(VisionTransformer(vit, patch_size=14, patches=729).state_dict())
        report = match_names("published", given, needed, unused=unused_names(vit))
        assert len(report.unused) == unused
        assert len(report.loaded) + unused == len(given)


def test_sizes_that_do_not_fit_are_refused() -> None:
    vit = VitConfig(width=10, depth=1, heads=0, mlp_hidden=4, registers=-1)
    config = VisionConfig(kind="dino_siglip", image_size=8, patch_size=14, chunk=-1, dino=vit)
    found = config.problems()
    for problem in (
        "model.vision.dino.heads=0 must be at least 1",
        "model.vision.dino.depth=1 must be at least 2: features come from the second-to-last block",
        "model.vision.dino.registers=-1 must be 0 or more",
        "model.vision.dino.weights is empty; name a safetensors file with the encoder's weights",
        "model.vision.siglip.weights is empty; name a safetensors file with the encoder's weights",
        "model.vision.image_size=8 is less than model.vision.patch_size=14; the published model has 384 and 14",
        "model.vision.chunk=-1 must be 0 or more; 0 means all images of a batch",
    ):
        assert problem in found
    heads = VitConfig(width=10, depth=2, heads=3, mlp_hidden=4, weights="x").problems("here")
    assert heads == ["here.heads=3 does not divide here.width=10; choose one that does"]
    assert small_vision(WEIGHTS).problems() == []


def test_the_kind_names_the_encoder() -> None:
    assert isinstance(build_vision(small_vision(WEIGHTS)), DinoSiglip)
    assert isinstance(build_vision(VisionConfig()), PatchVision)
    with pytest.raises(ValueError, match="has no encoder for images"):
        build_vision(VisionConfig(kind="features"))(some_images())


def test_pointers_of_git_lfs_and_quantised_encoders_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vits.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match=r"model\.vision\.dino\.weights .*vits\.safetensors is a git-lfs pointer"):
        DinoSiglip(small_vision(path)).weights_report()
    weights = load_file(WEIGHTS)
    name = next(name for name in weights if name.endswith("blocks.0.attn.qkv.weight"))
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, path)
    with pytest.raises(ValueError, match=rf"holds quantised numbers in {name} \(F8_E4M3\)"):
        DinoSiglip(small_vision(path)).weights_report()
