"""Vision encoders: pixels to the frozen features that the projector turns into MMU positions."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from modules.files import sha256
from modules.omnimamba.config import VisionConfig, VitConfig
from modules.omnimamba.vits import VisionTransformer, fit_positions, unused_names
from modules.omnimamba.weight_names import NamesReport, match_names, shapes_of
from modules.reading import require_file
from modules.weight_files import refuse_quantised

PREFIXES = ("vision_backbone.{}_featurizer.", "{}_featurizer.", "")
"""Possible prefixes of timm's names in a file: the published checkpoint, only the ViTs, or only one ViT."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
ENCODERS = (("dino", *IMAGENET), ("siglip", *HALVES))
"""(name, mean, std) of the two ViTs, in the order of their features."""


class VisionEncoder(nn.Module):
    """Turns images into features. It has no parameters: nothing to train, save or broadcast."""

    def weights_report(self) -> list[str]:
        """What is in the weight files, as text. Checks names and shapes without reading the weights.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file's names or shapes do not fit.
        """
        return []

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what determines the features, apart from the image; "" if only the code does."""
        return ""


class PatchVision(VisionEncoder):
    """Non-overlapping patches of normalised pixels, row by row. Nothing to train or load."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, S, S) to features (B, patches, 3 * patch_size**2).

        Raises:
            ValueError: the images are not S pixels high and wide.
        """
        _check_size(images, self.config.image_size)
        pixels = images.float()
        mean, std = pixels.mean((2, 3), keepdim=True), pixels.std((1, 2, 3), keepdim=True)
        pixels = (pixels - mean) / (std + 1)
        return F.unfold(pixels, self.config.patch_size, stride=self.config.patch_size).transpose(1, 2)


class GivenFeatures(VisionEncoder):
    """Replaces an encoder if the samples come with precomputed features."""

    def forward(self, images: Tensor) -> Tensor:
        """Must never be called.

        Raises:
            ValueError: always; the message says what to do.
        """
        raise ValueError("model.vision.kind=features has no encoder for images; give features, or choose another kind")


class DinoSiglip(VisionEncoder):
    """DINOv2 and SigLIP, frozen: the patch features after each one's second-to-last block, concatenated.

    The ViTs are not submodules. They are loaded with the first image, onto its device. So checkpoints do not contain
    them, optimizers, DDP and ZeRO do not see them, and ``train()`` and casts of the model do not reach them. A run
    without images needs neither their files nor their memory.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vits: tuple[VisionTransformer, ...] = ()  # a tuple, so that torch does not register them as submodules

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, S, S) to float32 features (B, patches, DINOv2's width + SigLIP's).

        Raises:
            FileNotFoundError: a weight file is missing.
            ValueError: the images are not S pixels high and wide, or a file's names or shapes do not fit.
        """
        _check_size(images, self.config.image_size)
        parts = torch.split(images, self.config.chunk or max(len(images), 1))
        return torch.cat([torch.cat(self.features(self.normalised(part.float() / 255)), dim=2) for part in parts])

    def normalised(self, unit: Tensor) -> list[Tensor]:
        """Pixels (B, 3, S, S) in [0, 1], normalised for each encoder."""
        return [
            torch.stack([(unit[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)  # plain numbers: nothing to copy
            for _, mean, std in ENCODERS
        ]

    @torch.no_grad()
    def features(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Each encoder's float32 features (B, patches, width) of its normalised pixels, computed in ``dtype``."""
        device = inputs[0].device
        with torch.autocast(device.type, enabled=False):
            pairs = zip(self._encoders(device), inputs, strict=True)
            return [vit(pixels.to(vit.pos_embed.dtype)).float() for vit, pixels in pairs]

    def weights_report(self) -> list[str]:
        """See `VisionEncoder.weights_report`."""
        return [line for name, _, _ in ENCODERS for line in self._match(name)[0].lines()]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the weight files, the sizes and the dtype."""
        sizes = {key: value for key, value in asdict(self.config).items() if key != "chunk"}
        for name, _, _ in ENCODERS:
            sizes[name]["weights"] = sha256(self._file(name))
        return hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()

    def published_weights(self) -> dict[str, Tensor]:
        """All tensors of both files, used or not, with prefixes ``dino_featurizer.`` and ``siglip_featurizer.``."""
        weights: dict[str, Tensor] = {}
        for name, _, _ in ENCODERS:
            prefix = self._match(name)[1]
            with safe_open(str(self._file(name)), framework="pt") as file:
                own = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                weights |= {f"{name}_featurizer.{key.removeprefix(prefix)}": file.get_tensor(key) for key in own}
        return weights

    def _encoders(self, device: torch.device) -> tuple[VisionTransformer, ...]:
        if not self.vits:
            with torch.inference_mode(False):  # an evaluation may load them first, but they outlive it
                self.vits = tuple(self._load(name, device) for name, _, _ in ENCODERS)
        if self.vits[0].pos_embed.device != device:
            self.vits = tuple(vit.to(device) for vit in self.vits)
        return self.vits

    def _load(self, name: str, device: torch.device) -> VisionTransformer:
        report, prefix = self._match(name)
        dtype = getattr(torch, self.config.dtype)
        with safe_open(str(self._file(name)), framework="pt", device=str(device)) as file:
            weights = {key: file.get_tensor(prefix + key).to(dtype) for key in report.loaded}
        weights["pos_embed"] = fit_positions(weights["pos_embed"], self.config.patches).to(dtype)
        vit = self._on_meta(name)
        vit.load_state_dict(weights, assign=True)
        return vit.requires_grad_(False).eval()

    def _match(self, name: str) -> tuple[NamesReport, str]:
        """Which names of an encoder's file are used, and their prefix there."""
        path, needed = self._file(name), shapes_of(self._on_meta(name).state_dict())
        try:
            with safe_open(str(path), framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                shapes = {key: tuple(each.get_shape()) for key, each in slices.items()}
                kinds = {key: each.get_dtype() for key, each in slices.items()}
        except SafetensorError as error:
            raise ValueError(
                f"model.vision.{name}.weights={path} is not a readable safetensors file: {error}"
            ) from error
        refuse_quantised(path, kinds)
        prefixes = [prefix.format(name) for prefix in PREFIXES]
        prefix = next((prefix for prefix in prefixes if prefix + "pos_embed" in shapes), "")
        given = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        if _is_square_grid(given.get("pos_embed", ()), needed["pos_embed"]):
            given["pos_embed"] = needed["pos_embed"]  # fit_positions resizes it
        unused = unused_names(self._vit_config(name))
        return match_names(f"{path} (model.vision.{name})", given, needed, unused=unused), prefix

    def _file(self, name: str) -> Path:
        path = Path(self._vit_config(name).weights)
        if not path.is_file():
            raise FileNotFoundError(
                f"model.vision.{name}.weights={path} is not a file; name a safetensors file with the encoder's weights "
                "under timm's names"
            )
        require_file(path, f"model.vision.{name}.weights")
        return path

    def _on_meta(self, name: str) -> VisionTransformer:
        with torch.device("meta"):
            return VisionTransformer(
                self._vit_config(name), patch_size=self.config.patch_size, patches=self.config.patches
            )

    def _vit_config(self, name: str) -> VitConfig:
        return self.config.dino if name == "dino" else self.config.siglip


def build_vision(config: VisionConfig) -> VisionEncoder:
    """The encoder that ``config.kind`` names."""
    if config.kind == "patches":
        return PatchVision(config)
    return GivenFeatures() if config.kind == "features" else DinoSiglip(config)


def _check_size(images: Tensor, size: int) -> None:
    if images.shape[1:] != (3, size, size):
        raise ValueError(
            f"images have shape {tuple(images.shape[1:])}, but model.vision.image_size={size} needs "
            f"(3, {size}, {size}); resize them when they are read"
        )


def _is_square_grid(given: Sequence[int], needed: Sequence[int]) -> bool:
    """Whether the shape ``given`` (1, N, D) is a square grid of positions of the needed width."""
    if len(given) != 3 or (given[0], given[2]) != (needed[0], needed[2]):
        return False
    side = round(math.sqrt(given[1]))
    return side * side == given[1]
