"""LlamaGen's VQ-16, the published model's image tokenizer: 256 pixels to 16 x 16 codes and back.

Shapes: B images, S pixels a side, n codes per image, K codebook entries, C numbers of an entry, h = w codes a side.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from modules.files import write_file
from modules.omnimamba.llamagen_layers import Decoder, Encoder, LlamaGenConfig
from modules.omnimamba.vq_files import check_codes, check_images, read_metadata, read_tensors
from modules.omnimamba.weight_names import NamesReport, match_names, shapes_of
from modules.reading import checked, parse_json
from modules.weight_files import read_weights

UNUSED = ("quantize.codebook_used",)
"""LlamaGen's statistics of how its training used the codebook."""
CODEBOOK = "quantize.embedding.weight"
PUBLISHED_PREFIX = "llm_backbone.vqvae."
"""Prefix of the names in a published OmniMamba checkpoint."""
GPU_BATCH = 8
"""How many pictures a GPU encodes at a time. A smaller last group is padded, because kernels differ by batch size."""


_Size = Annotated[int, Ge(1), Le(2**20)]


class _Sizes(TypedDict):
    image_size: _Size
    channels: _Size
    channel_multipliers: list[_Size]
    res_blocks: _Size
    z_channels: _Size
    codebook_size: _Size
    code_dim: _Size


class LlamaGenVQ(nn.Module):
    """The tokenizer, frozen. Its weights are arbitrary until `from_weights` or `load` sets them.

    Codes are computed in float32 with deterministic kernels and without TF32, always the same number of pictures at a
    time, and the nearest entry in float64. So on one machine a picture's codes depend only on the picture.
    """

    name = "llamagen_vq16"

    def __init__(self, config: LlamaGenConfig) -> None:
        """Build the modules.

        Raises:
            ValueError: the sizes do not fit together.
        """
        super().__init__()
        config.check()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.codebook_size, config.code_dim)})
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)
        self.decoder = Decoder(config)
        self.requires_grad_(False).eval()

    @property
    def codebook_size(self) -> int:
        """Number of entries, K."""
        return self.config.codebook_size

    @property
    def image_size(self) -> int:
        """Height and width of the pictures, S."""
        return self.config.image_size

    @property
    def tokens_per_image(self) -> int:
        """Codes per picture, n."""
        return self.config.side**2

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of kind, sizes and weights, which nothing changes."""
        digest = hashlib.sha256(f"{self.name}/{_sizes(self.config)}/".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes of ``images``: uint8 (B, 3, S, S) to int64 (B, n), on the weights' device.

        Raises:
            ValueError: the images have another size or type.
        """
        check_images(images, self.image_size)
        return self.codes((images.to(self._device).float() / 255 - 0.5) / 0.5)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Pictures of ``codes``: int64 (B, n) to uint8 (B, 3, S, S).

        Raises:
            ValueError: the number of codes is wrong, or a code is outside the codebook.
        """
        check_codes(codes, self.tokens_per_image, self.codebook_size)
        pixels = self.pixels(self.entries(codes.to(self._device)))
        return pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """Codes of float32 ``pixels`` (B, 3, S, S) in [-1, 1], int64 (B, n); row-major."""
        together = GPU_BATCH if pixels.is_cuda else 1
        with exactly(pixels.device):
            groups = [
                self._codes(F.pad(group, (0, 0) * 3 + (0, together - len(group))))[: len(group)]
                for group in torch.split(pixels, together)
            ]
        return torch.cat(groups)

    @torch.no_grad()
    def entries(self, codes: Tensor) -> Tensor:
        """The normalised codebook entries of ``codes`` (B, n), arranged as a picture (B, C, h, w)."""
        side = self.config.side
        return self._entries()[codes].view(len(codes), side, side, -1).movedim(3, 1)

    @torch.no_grad()
    def pixels(self, entries: Tensor) -> Tensor:
        """Entries (B, C, h, w) to pixels (B, 3, S, S), about in [-1, 1]."""
        decoded: Tensor = self.decoder(self.post_quant_conv(entries))
        return decoded

    @classmethod
    def from_weights(
        cls, origin: str, weights: Mapping[str, Tensor], config: LlamaGenConfig | None = None
    ) -> tuple["LlamaGenVQ", NamesReport]:
        """Build a tokenizer from weights under LlamaGen's names (see `load_llamagen`,
        `modules.published.from_published`).

        Raises:
            ValueError: a name is missing or unexpected, or its shape does not fit ``config`` (default: VQ-16's sizes).
        """
        with torch.device("meta"):
            vq = cls(config or LlamaGenConfig())
        report = match_names(origin, shapes_of(weights), shapes_of(vq.state_dict()), unused=UNUSED)
        vq.load_state_dict({name: weights[name].float() for name in report.loaded}, assign=True)
        vq.requires_grad_(False)
        return vq, report

    def save(self, path: Path) -> None:
        """Write the weights to ``path`` as safetensors, with kind and sizes in the metadata."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_file(path, save(weights, metadata={"kind": self.name, "sizes": _sizes(self.config)}))

    @classmethod
    def load(cls, path: Path) -> "LlamaGenVQ":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a llamagen_vq16 file.
        """
        metadata = read_metadata(path)
        if metadata["kind"] != cls.name:
            raise ValueError(f"image tokenizer {path} is of kind {metadata['kind']!r}, not {cls.name!r}")
        where = f"image tokenizer {path}"
        sizes = checked(parse_json(metadata.get("sizes", "null"), where), _Sizes, f"{where}, sizes of its metadata")
        known: dict[str, Any] = {name: value for name, value in sizes.items() if name in _Sizes.__annotations__}
        config = LlamaGenConfig(**known | {"channel_multipliers": tuple(sizes["channel_multipliers"])})
        return cls.from_weights(where, read_tensors(path), config)[0]

    @property
    def _device(self) -> torch.device:
        return self.quant_conv.weight.device

    def _codes(self, pixels: Tensor) -> Tensor:
        z_BChw = self.quant_conv(self.encoder(pixels))
        z_NC = F.normalize(z_BChw.movedim(1, 3).flatten(0, 2), dim=1).double()
        entries_KC = self._entries().double()
        distances_NK = (
            entries_KC.square().sum(1) - 2 * z_NC @ entries_KC.T
        )  # without z's own norm, which is the same for all entries
        return distances_NK.argmin(1).view(len(pixels), -1)

    def _entries(self) -> Tensor:
        embedding = self.quantize["embedding"].weight
        assert isinstance(embedding, Tensor)
        return F.normalize(embedding, dim=1)


def load_llamagen(path: Path) -> LlamaGenVQ:
    """Load VQ-16 from LlamaGen's ``vq_ds16_t2i.pt``, or from a published OmniMamba checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or does not hold VQ-16's weights.
    """
    weights = read_weights(path)
    if any(name.startswith(PUBLISHED_PREFIX) for name in weights):
        weights = {
            name.removeprefix(PUBLISHED_PREFIX): value
            for name, value in weights.items()
            if name.startswith(PUBLISHED_PREFIX)
        }
    return LlamaGenVQ.from_weights(f"image tokenizer {path}", weights)[0]


def holds_llamagen(path: Path) -> bool:
    """Whether a safetensors file has LlamaGen's names and is not one of our own files, which store their kind."""
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            return "kind" not in (file.metadata() or {}) and any(
                prefix + CODEBOOK in names for prefix in ("", PUBLISHED_PREFIX)
            )
    except (SafetensorError, OSError):
        return False  # the code that reads the file reports what is wrong with it


def _sizes(config: LlamaGenConfig) -> str:
    return json.dumps(asdict(config), sort_keys=True)


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute in true float32 with deterministic kernels inside this context: no autocast and no TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
