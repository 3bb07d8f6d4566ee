"""Image tokenizers: pictures to a fixed number of codes and back.

`LlamaGenVQ` is the published model's; `PatchKMeans` replaces it in tiny configurations. `load_image_tokenizer` chooses
the class by the file's ``kind``.
Shapes: B images, H = W pixels, n codes per image, K codebook entries, D pixel values of one patch, P patches.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import torch
from annotated_types import Ge, Le
from safetensors.torch import save
from torch import Tensor, nn

from modules.files import write_file
from modules.omnimamba.kmeans import fit_centres, nearest
from modules.omnimamba.llamagen import LlamaGenVQ, holds_llamagen, load_llamagen
from modules.omnimamba.vq_files import check_codebook_size, check_codes, check_images, read_metadata, read_tensors
from modules.reading import checked, parse_json


class ImageTokenizer(Protocol):
    """What the pipeline needs from an image tokenizer."""

    @property
    def name(self) -> str:
        """Its kind, as stored in its file."""

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""

    @property
    def image_size(self) -> int:
        """Height and width of the pictures, in pixels."""

    @property
    def tokens_per_image(self) -> int:
        """Number of codes per picture."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what determines the codes: kind, sizes, weights."""

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to int64 (B, n)."""

    def decode(self, codes: Tensor) -> Tensor:
        """int64 (B, n) to uint8 (B, 3, H, W)."""


class PatchKMeans(nn.Module):
    """A codebook of pixel patches: each non-overlapping patch, in row-major order, becomes its nearest entry.

    Distances are exact (see `modules.omnimamba.kmeans`), so the codes of an image depend only on the image and the
    codebook. A tie goes to the first entry.
    """

    name = "patch_kmeans"
    codebook: Tensor

    def __init__(self, codebook: Tensor, *, image_size: int, patch_size: int) -> None:
        """Use ``codebook``, uint8 (K, 3 * patch_size**2).

        Raises:
            ValueError: the sizes do not fit together.
        """
        super().__init__()
        _check_sizes(codebook.shape[0], image_size, patch_size)
        if codebook.dtype != torch.uint8 or codebook.ndim != 2 or codebook.shape[1] != 3 * patch_size**2:
            raise ValueError(
                f"a patch_kmeans codebook is uint8 of shape (codes, {3 * patch_size**2}) for patch_size={patch_size}, "
                f"not {codebook.dtype} of shape {tuple(codebook.shape)}"
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.register_buffer("codebook", codebook)

    @property
    def codebook_size(self) -> int:
        """Number of entries, K."""
        return self.codebook.shape[0]

    @property
    def tokens_per_image(self) -> int:
        """Patches per picture, n."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of kind, sizes and codebook."""
        header = f"{self.name}/{self.image_size}/{self.patch_size}/".encode()
        return hashlib.sha256(header + self.codebook.cpu().numpy().tobytes()).hexdigest()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes of ``images``: uint8 (B, 3, H, W) to int64 (B, n), on the codebook's device.

        Raises:
            ValueError: the images have another size or type.
        """
        check_images(images, self.image_size)
        patches_PD = _patches(images.to(self.codebook.device), self.patch_size)
        codes, _ = nearest(patches_PD, self.codebook)
        return codes.view(len(images), self.tokens_per_image)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Pictures of ``codes``: int64 (B, n) to uint8 (B, 3, H, W).

        Raises:
            ValueError: the number of codes is wrong, or a code is outside the codebook.
        """
        check_codes(codes, self.tokens_per_image, self.codebook_size)
        side, size = self.image_size // self.patch_size, self.patch_size
        patches = self.codebook[codes.to(self.codebook.device)].view(-1, side, side, 3, size, size)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, self.image_size, self.image_size)

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        images: Tensor,
        *,
        codebook_size: int,
        patch_size: int,
        seed: int,
        iterations: int = 12,
        max_patches: int = 32_768,
    ) -> "PatchKMeans":
        """Fit a codebook to ``images``, uint8 (N, 3, H, W), by k-means (see `fit_centres`).

        The result depends only on the arguments, not on the machine.

        Raises:
            ValueError: the sizes do not fit together, or there are fewer different patches than codes.
        """
        _check_sizes(codebook_size, images.shape[-1], patch_size)
        check_images(images, images.shape[-1])
        centres_KD = fit_centres(
            _patches(images, patch_size),
            count=codebook_size,
            seed=seed,
            iterations=iterations,
            max_patches=max_patches,
        )
        return cls(centres_KD, image_size=images.shape[-1], patch_size=patch_size)

    def save(self, path: Path) -> None:
        """Write the codebook to ``path`` as safetensors, with kind and sizes in the metadata."""
        metadata = {"kind": self.name, "image_size": str(self.image_size), "patch_size": str(self.patch_size)}
        write_file(path, save({"codebook": self.codebook.cpu().contiguous()}, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> "PatchKMeans":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a patch_kmeans file.
        """
        metadata = read_metadata(path)
        if metadata["kind"] != cls.name:
            raise ValueError(f"image tokenizer {path} is of kind {metadata['kind']!r}, not {cls.name!r}")
        where, tensors = f"image tokenizer {path}", read_tensors(path)
        if "codebook" not in tensors:
            raise ValueError(f"{where} holds no codebook; was it made here?")
        sizes = {
            key: _size(metadata.get(key), f"{where}, {key} of its metadata") for key in ("image_size", "patch_size")
        }
        return cls(tensors["codebook"], **sizes)


def load_image_tokenizer(path: str | Path) -> ImageTokenizer:
    """Load the image tokenizer in ``path``: of the kind stored in the file, or LlamaGen's VQ-16 by its names.

    VQ-16 may be LlamaGen's own ``vq_ds16_t2i.pt``, or a published OmniMamba checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image tokenizer, or is of an unknown kind.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or holds_llamagen(path):
        return load_llamagen(path)
    kinds: dict[str, Callable[[Path], ImageTokenizer]] = {
        PatchKMeans.name: PatchKMeans.load,
        LlamaGenVQ.name: LlamaGenVQ.load,
    }
    kind = read_metadata(path)["kind"]
    if kind not in kinds:
        raise ValueError(f"image tokenizer {path} is of kind {kind!r}; known kinds: {', '.join(kinds)}")
    return kinds[kind](path)


def _size(text: str | None, where: str) -> int:
    size: int = checked(parse_json(text or "null", where), cast(Any, Annotated[int, Ge(1), Le(2**20)]), where)
    return size


def _check_sizes(codebook_size: int, image_size: int, patch_size: int) -> None:
    check_codebook_size(codebook_size)
    if patch_size < 1 or image_size % patch_size:
        raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}; choose one that does")


def _patches(images: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) to uint8 (P, D): row-major patches, with channels first in each."""
    windows = images.unfold(2, size, size).unfold(3, size, size)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * size * size)
