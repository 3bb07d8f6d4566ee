"""Configuration of the model: sizes and choices, and the rules between them."""

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["mmu", "t2i"]
TASKS: tuple[Task, ...] = ("mmu", "t2i")
"""The fixed order of tasks: in rows, in adapters, in reports."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Task LoRA on every block's input projection (paper section 3.3)."""

    rank: int = 8
    """Rank of the low-rank product."""
    alpha: float = 32.0
    """The product is scaled by ``alpha / rank``."""
    dropout: float = 0.05
    """Share of the inputs left out in training."""

    @property
    def scale(self) -> float:
        """Factor on the low-rank product."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Sizes of one vision transformer, and where its weights are."""

    width: int
    """Width of a feature."""
    depth: int
    """Blocks of the whole model; features are taken after the second-to-last."""
    heads: int
    """Attention heads."""
    mlp_hidden: int
    """Hidden width of the MLPs."""
    registers: int = 0
    """Number of register tokens."""
    class_token: bool = False
    """Whether it has a class token."""
    layer_scale: bool = False
    """Whether branches are scaled by learnt factors."""
    weights: str = ""
    """Path of a safetensors file with timm's names, with or without the published checkpoint's prefix."""

    def problems(self, key: str) -> list[str]:
        """Broken rules, each with the way out; ``key`` is this section's place in the configuration."""
        sizes = {name: getattr(self, name) for name in ("width", "heads", "mlp_hidden")}
        found = [f"{key}.{name}={size} must be at least 1" for name, size in sizes.items() if size < 1]
        if self.depth < 2:
            found.append(f"{key}.depth={self.depth} must be at least 2: features come from the second-to-last block")
        if self.registers < 0:
            found.append(f"{key}.registers={self.registers} must be 0 or more")
        if not found and self.width % self.heads:
            found.append(f"{key}.heads={self.heads} does not divide {key}.width={self.width}; choose one that does")
        if not self.weights:
            found.append(f"{key}.weights is empty; name a safetensors file with the encoder's weights")
        return found


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The frozen encoder of MMU images.

    ``dino_siglip`` is the published model's: the features of two ViTs, concatenated, at ``image_size=384`` and
    ``patch_size=14``. ``patches`` cuts the image into squares of ``patch_size`` pixels and returns their normalised
    pixels; it replaces the ViTs in tiny configurations. ``features`` means that samples come with precomputed features,
    ``given_patches`` of ``given_width`` each.
    """

    kind: Literal["dino_siglip", "patches", "features"] = "patches"
    """Which encoder; the text of the section says what each is."""
    image_size: int = 64
    """Side of the picture it sees, in pixels."""
    patch_size: int = 8
    """Side of a patch, in pixels."""
    given_patches: int = 0
    """Features of an image, with ``kind=features``."""
    given_width: int = 0
    """Width of such a feature."""
    dino: VitConfig = field(
        default_factory=lambda: VitConfig(
            width=1024, depth=24, heads=16, mlp_hidden=4096, registers=4, class_token=True, layer_scale=True
        )
    )
    """timm's vit_large_patch14_reg4_dinov2.lvd142m."""
    siglip: VitConfig = field(default_factory=lambda: VitConfig(width=1152, depth=27, heads=16, mlp_hidden=4304))
    """timm's vit_so400m_patch14_siglip_384."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the ViTs' weights, and of the computation of their features."""
    chunk: int = 0
    """How many images the ViTs process at a time; 0 means all images of a batch."""

    @property
    def patches(self) -> int:
        """Number of features per image; pixels that do not fill a patch are left out."""
        return self.given_patches if self.kind == "features" else (self.image_size // self.patch_size) ** 2

    @property
    def width(self) -> int:
        """Width of one feature."""
        if self.kind == "dino_siglip":
            return self.dino.width + self.siglip.width
        return 3 * self.patch_size**2 if self.kind == "patches" else self.given_width

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        if self.kind == "features":
            return []
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size}
        found = [f"model.vision.{name}={size} must be at least 1" for name, size in sizes.items() if size < 1]
        if self.kind == "dino_siglip":
            return found + self._vit_problems()
        if not found and self.image_size % self.patch_size:
            found = [
                f"model.vision.patch_size={self.patch_size} does not divide model.vision.image_size={self.image_size}; "
                "choose a patch size that does"
            ]
        return found

    def _vit_problems(self) -> list[str]:
        found = self.dino.problems("model.vision.dino") + self.siglip.problems("model.vision.siglip")
        if self.image_size < self.patch_size:
            found.append(
                f"model.vision.image_size={self.image_size} is less than model.vision.patch_size={self.patch_size}; "
                "the published model has 384 and 14"
            )
        if self.chunk < 0:
            found.append(f"model.vision.chunk={self.chunk} must be 0 or more; 0 means all images of a batch")
        return found


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the OmniMamba model; the defaults are the published 1.3B language model's."""

    d_model: int = 2048
    """Width of the residual stream."""
    n_layer: int = 48
    """Number of Mamba-2 blocks."""
    d_state: int = 128
    """Size of a head's state."""
    d_conv: int = 4
    """Width of the convolution before the scan."""
    expand: int = 2
    """Width inside a block, as a multiple of ``d_model``."""
    headdim: int = 64
    """Width of a state-space head."""
    chunk_size: int = 256
    """Positions that the scan takes at a time."""
    norm_eps: float = 1e-5
    """Epsilon of the norms."""
    gated_norm_eps: float = 1e-5
    """Epsilon of the norm after the scan; the published code sets it separately from the other norms."""
    tokenizer: str = ""
    """Path of the text tokenizer's ``tokenizer.json``."""
    vocab_size: int = 50288
    """Rows of the text embedding: the tokenizer's ids (special tokens included) rounded up to a multiple of 16."""
    image_vocab: int = 16384
    """Number of codes of the VQ tokenizer."""
    image_tokens: int = 256
    """Codes of a picture."""
    caption_length: int = 68
    """Caption ids of a T2I sequence, left-padded. Longer captions are cut; longer generation prompts are refused."""
    mmu_text_length: int = 449
    """Text ids of an MMU sequence, right-padded; turns beyond this are dropped."""
    mmu_positions: int = 1500
    """Learnt positions of MMU sequences; at least as many as the longest has."""
    t2i_positions: int = 329
    """Learnt positions of T2I sequences; at least as many as one has."""
    projector_hidden: int = 8704
    """Hidden width of the projector of image features."""
    image_mlp_hidden: int = 8192
    """Hidden width of the MLP of image tokens."""
    vocabularies: Literal["decoupled", "shared"] = "decoupled"
    """``shared``: one table and one head for text and image tokens (an ablation in the paper's Table 4)."""
    lora: Literal["task", "none"] = "task"
    """``task``: adapters for each task. ``none``: no adapters (an ablation in the paper's Table 4)."""
    adapters: LoraConfig = field(default_factory=LoraConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    vq: str = ""
    """Path of the VQ tokenizer's weights: needed to decode pictures, but not to train on prepared codes."""
    text_embedding_std: float = 0.02
    """Standard deviation of the initial values. A larger one helps a model that is not pre-trained tell words apart
    sooner."""
    image_table_std: float = 0.02
    """Standard deviation of the initial values of the table of image tokens."""
    mmu_positions_std: float = 0.02
    """Standard deviation of the initial values of the MMU positions."""
    A_init_range: tuple[float, float] = (1.0, 16.0)
    """Range of the initial decay rates, as in mamba_ssm. A small model that is not pre-trained remembers its caption
    sooner with lower ones."""
    init_seed: int = 0
    """A parameter's initial value depends only on this seed and the parameter's name."""

    @property
    def d_inner(self) -> int:
        """Width inside a block."""
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        """State-space heads per block."""
        return self.d_inner // self.headdim

    def length(self, task: Task) -> int:
        """Positions of a sequence of ``task``."""
        return self.mmu_length if task == "mmu" else self.t2i_length

    @property
    def t2i_length(self) -> int:
        """Positions of a T2I sequence: t2i, sot, caption, eot, soi, image tokens, eoi."""
        return self.caption_length + self.image_tokens + 5

    @property
    def mmu_length(self) -> int:
        """Positions of a padded MMU sequence: mmu, soi, image features, eoi, sot, text."""
        return self.vision.patches + self.mmu_text_length + 4

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = self.vision.problems() + self._size_problems()
        if found:
            return found  # the rules below compute with these sizes
        if self.d_inner % self.headdim:
            found.append(
                f"model.headdim={self.headdim} does not divide expand*d_model={self.d_inner}; choose one that does"
            )
        for name in ("text_embedding_std", "image_table_std", "mmu_positions_std"):
            if not getattr(self, name) > 0:
                found.append(f"model.{name}={getattr(self, name)} must be above 0; the published value is 0.02")
        if not 0 < self.A_init_range[0] <= self.A_init_range[1]:
            found.append(
                f"model.A_init_range={list(self.A_init_range)} must be two rates above 0, the lower one first; the "
                "published values are [1, 16]"
            )
        if self.d_conv < 2:
            found.append(f"model.d_conv={self.d_conv} must be at least 2: with 1, the convolution cannot look back")
        if self.vocab_size % 16:
            found.append(f"model.vocab_size={self.vocab_size} is not a multiple of 16; round it up")
        if self.t2i_length > self.t2i_positions:
            found.append(
                f"a T2I sequence has {self.t2i_length} positions (caption_length + image_tokens + 5) but "
                f"model.t2i_positions={self.t2i_positions}; raise it to at least {self.t2i_length}"
            )
        if self.mmu_length > self.mmu_positions:
            found.append(
                f"an MMU sequence has {self.mmu_length} positions (patches + mmu_text_length + 4) but "
                f"model.mmu_positions={self.mmu_positions}; raise it to at least {self.mmu_length}"
            )
        if self.adapters.rank < 1:
            found.append(
                f"model.adapters.rank={self.adapters.rank} must be at least 1; model.lora=none turns adapters off"
            )
        if not 0 <= self.adapters.dropout < 1:
            found.append(f"model.adapters.dropout={self.adapters.dropout} must lie in [0, 1)")
        return found

    def _size_problems(self) -> list[str]:
        names = ("d_model", "n_layer", "d_state", "d_conv", "expand", "headdim", "chunk_size", "image_tokens")
        return [
            f"model.{name}={getattr(self, name)} must be at least 1"
            for name in (*names, "caption_length", "mmu_text_length")
            if getattr(self, name) < 1
        ]
