from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.omnimamba.vq import PatchKMeans, load_image_tokenizer


def some_images(count: int = 6, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Pictures of few different flat 4 x 4 patches."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(256, (12, 3), generator=generator, dtype=torch.uint8)
    cells = torch.randint(12, (count, size // 4, size // 4), generator=generator)
    return colors[cells].permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope="module")
def vq() -> PatchKMeans:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return PatchKMeans.fit(images, codebook_size=32, patch_size=4, seed=0)


def test_patches_in_row_major_order() -> None:
    codebook = torch.stack([torch.full((48,), value, dtype=torch.uint8) for value in (0, 80, 160, 240)])
    vq = PatchKMeans(codebook, image_size=8, patch_size=4)
    image = torch.tensor([[10, 90], [150, 250]], dtype=torch.uint8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    codes = vq.encode(image.expand(1, 3, 8, 8))
    assert codes.tolist() == [[0, 1, 2, 3]]
    assert codes.dtype == torch.int64
    assert vq.tokens_per_image == 4
    assert vq.codebook_size == 4


def test_channels_and_pixels_keep_their_places() -> None:
    patch = torch.arange(48, dtype=torch.uint8)
    vq = PatchKMeans(patch[None], image_size=4, patch_size=4)
    assert torch.equal(vq.decode(torch.zeros(1, 1, dtype=torch.int64))[0], patch.view(3, 4, 4))


def test_codes_are_the_nearest_entries(vq: PatchKMeans) -> None:
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    codes = vq.encode(images)
    for row in range(4):
        for column in range(4):
            patches = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(3, 1, 48).long()
            distances = (patches - vq.codebook.long()).square().sum(-1)
            chosen = codes[:, 4 * row + column]
            assert torch.equal(distances.gather(1, chosen[:, None]).squeeze(1), distances.min(1).values)


def test_few_different_patches_are_reproduced_exactly() -> None:
    images = some_images()
    vq = PatchKMeans.fit(images, codebook_size=12, patch_size=4, seed=0)
    assert torch.equal(vq.decode(vq.encode(images)), images)


def test_decoding_and_encoding_gives_the_same_codes(vq: PatchKMeans) -> None:
    codes = torch.randint(32, (5, 16))
    assert len(vq.codebook.unique(dim=0)) == 32
    assert torch.equal(vq.encode(vq.decode(codes)), codes)


def test_a_code_depends_neither_on_the_batch_nor_on_reduced_precision(vq: PatchKMeans) -> None:
    images = torch.randint(256, (9, 3, 16, 16), dtype=torch.uint8)
    whole = vq.encode(images)
    assert torch.equal(torch.cat([vq.encode(image[None]) for image in images]), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vq.encode(images), whole)
    assert torch.equal(PatchKMeans.to(vq, torch.bfloat16).encode(images), whole)


def test_saved_and_loaded_is_the_same(vq: PatchKMeans, tmp_path: Path) -> None:
    vq.save(tmp_path / "vq.safetensors")
    loaded = load_image_tokenizer(tmp_path / "vq.safetensors")
    assert isinstance(loaded, PatchKMeans)
    assert (loaded.image_size, loaded.patch_size, loaded.name) == (16, 4, "patch_kmeans")
    assert loaded.fingerprint == vq.fingerprint
    assert torch.equal(loaded.codebook, vq.codebook)


def test_the_fingerprint_changes_with_codebook_and_size(vq: PatchKMeans) -> None:
    other = vq.codebook.clone()
    other[3, 5] ^= 1
    fingerprints = {
        vq.fingerprint,
        PatchKMeans(other, image_size=16, patch_size=4).fingerprint,
        PatchKMeans(vq.codebook, image_size=32, patch_size=4).fingerprint,
    }
    assert len(fingerprints) == 3
    assert len(vq.fingerprint) == 64


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image tokenizer .*none\.safetensors does not exist"):
        load_image_tokenizer(tmp_path / "none.safetensors")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vq.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_image_tokenizer(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="has no kind in its"):
        load_image_tokenizer(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"kind": "vq99"})
    with pytest.raises(ValueError, match="is of kind 'vq99'; known kinds: patch_kmeans"):
        load_image_tokenizer(path)
    with pytest.raises(ValueError, match="is of kind 'vq99', not 'patch_kmeans'"):
        PatchKMeans.load(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codebook_size": 0, "patch_size": 4}, r"codebook_size=0 must lie in \[1, 65536\]"),
        ({"codebook_size": 70000, "patch_size": 4}, "stored as uint16"),
        ({"codebook_size": 4, "patch_size": 5}, "patch_size=5 does not divide image_size=16"),
        ({"codebook_size": 200, "patch_size": 4}, "different patches, fewer than codebook_size=200"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchKMeans.fit(some_images(), seed=0, **values)


def test_wrong_images_codes_and_codebooks_are_refused(vq: PatchKMeans) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(B, 3, 16, 16\), not torch.float32"):
        vq.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 32\)"):
        vq.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="an image has 16 codes"):
        vq.decode(torch.zeros(1, 15, dtype=torch.int64))
    with pytest.raises(ValueError, match="codes run from 0 to 32 but the codebook has 32"):
        vq.decode(torch.tensor([[0] * 15 + [32]]))
    with pytest.raises(ValueError, match=r"is uint8 of shape \(codes, 48\)"):
        PatchKMeans(torch.zeros(4, 12, dtype=torch.uint8), image_size=16, patch_size=4)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "image_size of its metadata: is null, expected a whole number"),
        ({"image_size": "x", "patch_size": "4"}, "image_size of its metadata is not valid JSON"),
        ({"image_size": "8.0", "patch_size": "4"}, r"image_size of its metadata: is 8\.0, expected a whole number"),
        ({"image_size": "8", "patch_size": "0"}, "patch_size of its metadata: is 0, expected at least 1"),
        ({"image_size": f"1{'0' * 30}", "patch_size": "4"}, "image_size of its metadata: is 1000.*expected at most"),
    ],
)
def test_odd_metadata_are_named(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path, codebook = tmp_path / "vq.safetensors", torch.zeros(4, 48, dtype=torch.uint8)
    save_file({"codebook": codebook}, path, metadata={"kind": "patch_kmeans", **metadata})
    with pytest.raises(ValueError, match=rf"^image tokenizer .*vq\.safetensors, {message}"):
        load_image_tokenizer(path)


def test_files_without_a_codebook_and_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vq.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"kind": "patch_kmeans", "image_size": "8", "patch_size": "4"})
    with pytest.raises(ValueError, match="holds no codebook; was it made here"):
        load_image_tokenizer(path)
    for name in ("vq.safetensors", "vq_ds16_t2i.pt"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
        with pytest.raises(ValueError, match=f"{name} is a git-lfs pointer, not the file itself; run `git lfs pull`"):
            load_image_tokenizer(tmp_path / name)
