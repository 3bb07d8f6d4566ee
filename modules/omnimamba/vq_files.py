"""Checks that all image tokenizers share: of their files, pictures and codes."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from modules.reading import require_file

MAX_CODEBOOK = 2**16
"""Codes are stored as uint16."""


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a tokenizer's file, with its ``kind``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a safetensors file, or has no kind.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"image tokenizer {path} does not exist. Name a tokenizer file "
            "(`python -m pipelines.prepare scenes` fits one for the embedded data)."
        )
    require_file(path, "image tokenizer")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"image tokenizer {path} is not a readable safetensors file: {error}") from error
    if "kind" not in metadata:
        raise ValueError(f"image tokenizer {path} has no kind in its safetensors metadata; was it made here?")
    return metadata


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a tokenizer's file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, LookupError, AttributeError) as error:  # the last two: a type that torch does not have
        raise ValueError(f"image tokenizer {path} is not a readable safetensors file: {error}") from error
    return tensors


def check_codebook_size(codebook_size: int) -> None:
    """Raise ValueError if the codebook is too large for its codes to be stored."""
    if not 1 <= codebook_size <= MAX_CODEBOOK:
        raise ValueError(f"codebook_size={codebook_size} must lie in [1, {MAX_CODEBOOK}]: codes are stored as uint16")


def check_images(images: Tensor, size: int) -> None:
    """Raise ValueError unless ``images`` are uint8 (B, 3, size, size)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(
            f"images must be uint8 of shape (B, 3, {size}, {size}), not {images.dtype} of shape {tuple(images.shape)}"
        )


def check_codes(codes: Tensor, tokens_per_image: int, codebook_size: int) -> None:
    """Raise ValueError unless ``codes`` are (B, tokens_per_image) and all in the codebook."""
    if codes.ndim != 2 or codes.shape[1] != tokens_per_image:
        raise ValueError(f"an image has {tokens_per_image} codes; got codes of shape {tuple(codes.shape)}")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise ValueError(
            f"codes run from {int(codes.min())} to {int(codes.max())} but the codebook has {codebook_size} "
            "entries; were they made with another tokenizer?"
        )
