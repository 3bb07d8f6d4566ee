"""VQ-16: recorded numbers of the published tokenizer, its names, and its file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modules.omnimamba.llamagen import PUBLISHED_PREFIX, LlamaGenVQ
from modules.omnimamba.llamagen_layers import LlamaGenConfig
from modules.omnimamba.vq import PatchKMeans, load_image_tokenizer
from modules.omnimamba.weight_names import shapes_of

from .recorded import RECORDED, published_shapes

SMALL = LlamaGenConfig(
    image_size=64, channels=32, channel_multipliers=(1, 1, 1, 1, 2), z_channels=64, codebook_size=64, code_dim=8
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(RECORDED / "vq_weights.safetensors")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(RECORDED / "vq_tensors.safetensors")


@pytest.fixture(scope="module")
def vq(weights: dict[str, Tensor]) -> LlamaGenVQ:
    return LlamaGenVQ.from_weights("the reference", weights, SMALL)[0]


def some_images(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_codes_entries_and_pixels_are_the_published_ones(vq: LlamaGenVQ, tensors: dict[str, Tensor]) -> None:
    codes = vq.codes(tensors["image"])
    assert torch.equal(codes, tensors["codes"])
    torch.testing.assert_close(vq.entries(codes), tensors["quantized"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vq.pixels(vq.entries(codes)), tensors["decoded"], rtol=1e-4, atol=1e-4)


def test_bytes_stand_for_pixels_between_minus_one_and_one(vq: LlamaGenVQ, tensors: dict[str, Tensor]) -> None:
    images = some_images(2)
    assert torch.equal(vq.encode(images), vq.codes(images / 127.5 - 1))
    decoded = vq.decode(tensors["codes"])
    assert decoded.dtype == torch.uint8
    expected = tensors["decoded"].clamp(-1, 1) * 127.5 + 127.5
    assert (decoded - expected).abs().max() <= 0.501  # rounded to the nearest byte
    assert {0, 255} <= set(decoded.flatten().tolist())


def test_a_code_depends_neither_on_the_batch_nor_on_reduced_precision(vq: LlamaGenVQ) -> None:
    images = some_images(5)
    whole = vq.encode(images)
    assert whole.shape == (5, vq.tokens_per_image) == (5, 16)
    assert torch.equal(torch.cat([vq.encode(image[None]) for image in images]), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vq.encode(images), whole)
    assert vq.encode(images[:0]).shape == (0, 16)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(vq.encode(images), whole)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_nearest_entry_is_taken_by_direction(vq: LlamaGenVQ, weights: dict[str, Tensor]) -> None:
    scaled = dict(weights)
    factors = torch.linspace(0.5, 2, 64)[:, None]
    scaled["quantize.embedding.weight"] = weights["quantize.embedding.weight"] * factors
    other = LlamaGenVQ.from_weights("scaled", scaled, SMALL)[0]
    assert torch.equal(other.encode(some_images(3)), vq.encode(some_images(3)))


def test_nothing_of_it_is_trained(vq: LlamaGenVQ) -> None:
    assert not vq.training
    assert not any(parameter.requires_grad for parameter in vq.parameters())


def test_saved_and_loaded_is_the_same(vq: LlamaGenVQ, tmp_path: Path) -> None:
    vq.save(tmp_path / "vq.safetensors")
    loaded = load_image_tokenizer(tmp_path / "vq.safetensors")
    assert isinstance(loaded, LlamaGenVQ)
    assert (loaded.name, loaded.codebook_size, loaded.image_size) == ("llamagen_vq16", 64, 64)
    assert loaded.config == vq.config
    assert loaded.fingerprint == vq.fingerprint
    assert len(vq.fingerprint) == 64
    assert torch.equal(loaded.encode(some_images(2)), vq.encode(some_images(2)))
    with pytest.raises(ValueError, match="is of kind 'llamagen_vq16', not 'patch_kmeans'"):
        PatchKMeans.load(tmp_path / "vq.safetensors")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "vq.safetensors", metadata={"kind": "patch_kmeans"})
    with pytest.raises(ValueError, match="is of kind 'patch_kmeans', not 'llamagen_vq16'"):
        LlamaGenVQ.load(tmp_path / "vq.safetensors")


def test_the_fingerprint_changes_with_weights_and_sizes(vq: LlamaGenVQ, weights: dict[str, Tensor]) -> None:
    other = weights | {"quant_conv.bias": weights["quant_conv.bias"] + 1e-4}
    larger = LlamaGenConfig(**{**vars(SMALL), "image_size": 128})
    fingerprints = {
        vq.fingerprint,
        LlamaGenVQ.from_weights("other", other, SMALL)[0].fingerprint,
        LlamaGenVQ.from_weights("larger", weights, larger)[0].fingerprint,
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize(("name", "prefix"), [("vq_ds16_t2i.pt", ""), ("omnimamba.safetensors", PUBLISHED_PREFIX)])
def test_vq16_is_found_in_llamagens_file_and_in_a_published_checkpoint(tmp_path: Path, name: str, prefix: str) -> None:
    with torch.device("meta"):
        shapes = LlamaGenVQ(LlamaGenConfig()).state_dict()
    names = [PUBLISHED_PREFIX + key.removeprefix(PUBLISHED_PREFIX) for key in published_shapes() if "vqvae" in key]
    assert {key.removeprefix(PUBLISHED_PREFIX) for key in names} == {*shapes, "quantize.codebook_used"}
    one = torch.ones(())
    weights = {prefix + key: one.expand(value.shape) for key, value in shapes.items()}
    weights |= {prefix + "quantize.codebook_used": torch.zeros(65536)}
    if prefix:
        save_file({key: value.half().contiguous() for key, value in weights.items()}, tmp_path / name)
    else:
        torch.save({"model": weights, "epoch": 3}, tmp_path / name)
    vq = load_image_tokenizer(tmp_path / name)
    assert isinstance(vq, LlamaGenVQ)
    assert (vq.codebook_size, vq.tokens_per_image, vq.image_size) == (16384, 256, 256)
    assert {tensor.dtype for tensor in vq.state_dict().values()} == {torch.float32}


def test_another_checkpoint_is_no_vq16(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"image tokenizer .*small\.pt do not fit.*64 x 8 instead of 16384 x 8"):
        load_image_tokenizer(tmp_path / "small.pt")


def test_weights_that_do_not_fit_are_named(weights: dict[str, Tensor]) -> None:
    changed = {name: value for name, value in weights.items() if name != "decoder.mid.1.q.bias"}
    with pytest.raises(ValueError, match=r"1 missing: decoder\.mid\.1\.q\.bias; 1 unexpected: loss\.x"):
        LlamaGenVQ.from_weights("changed", changed | {"loss.x": torch.zeros(1)}, SMALL)
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight 64 x 8 instead of 16384 x 8"):
        LlamaGenVQ.from_weights("small", weights)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 250}, "image_size=250 is not a multiple of 16, a code's pixels"),
        ({"channels": 48}, r"are \[48, 48, 96, 96, 192\]; all must be multiples of 32"),
        ({"codebook_size": 70000}, "stored as uint16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaGenVQ(LlamaGenConfig(**sizes))


def test_wrong_images_and_codes_are_refused(vq: LlamaGenVQ) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(B, 3, 64, 64\), not torch.float32"):
        vq.encode(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="an image has 16 codes"):
        vq.decode(torch.zeros(1, 15, dtype=torch.int64))
    with pytest.raises(ValueError, match="codes run from 0 to 64 but the codebook has 64"):
        vq.decode(torch.tensor([[0] * 15 + [64]]))


def test_the_full_tokenizer_has_the_published_names_and_shapes() -> None:
    prefix = "llm_backbone.vqvae."
    published = {key.removeprefix(prefix): shape for key, shape in published_shapes().items() if key.startswith(prefix)}
    published.pop("quantize.codebook_used")
    with torch.device("meta"):
        vq = LlamaGenVQ(LlamaGenConfig())
    assert shapes_of(vq.state_dict()) == published
    assert (vq.codebook_size, vq.image_size, vq.tokens_per_image) == (16384, 256, 256)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (None, "sizes of its metadata: is null, expected an object"),
        ("[]", r"sizes of its metadata: is \[\], expected an object"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"image_size": "64"}', "sizes of its metadata: image_size is '64', expected a whole number"),
    ],
)
def test_odd_metadata_are_named(tmp_path: Path, sizes: str | None, message: str) -> None:
    metadata = {"kind": "llamagen_vq16", **({} if sizes is None else {"sizes": sizes})}
    save_file({"x": torch.zeros(1)}, tmp_path / "vq.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=rf"^image tokenizer .*vq\.safetensors.*{message}"):
        LlamaGenVQ.load(tmp_path / "vq.safetensors")
