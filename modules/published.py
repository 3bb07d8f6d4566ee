"""Maps the names of published checkpoints to ours and back: OmniMamba's, and those of the Mamba-2 it starts from.

Both directions are explicit: a key that no rule covers is an error and is never dropped. The functions rename tensors
and share their memory; they copy and read nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from modules.omnimamba.llamagen import PUBLISHED_PREFIX
from modules.omnimamba.weight_names import NamesReport, match_names, shapes_of

LANGUAGE, VISION, VQ = "llm_backbone.mamba.", "vision_backbone.", PUBLISHED_PREFIX
"""Prefixes of the parts' names; the projector's prefix is in `RULES`."""
RULES: tuple[tuple[str, str], ...] = (
    ("llm_backbone.mamba.backbone.embedding.weight", "text_embedding.weight"),
    ("llm_backbone.mamba.backbone.img_embeddings.word_embeddings.weight", "image_table.weight"),
    ("llm_backbone.mamba.backbone.img_embeddings.project_in.projector.*", "image_mlp.*"),
    ("llm_backbone.mamba.backbone.caption_embed.cap_proj.*", "caption_projection.*"),
    ("llm_backbone.mamba.backbone.pos_embed", "t2i_positions"),
    ("llm_backbone.mamba.backbone.mmu_pos_embed", "mmu_positions"),
    ("llm_backbone.mamba.backbone.norm_f.weight", "backbone.norm.weight"),
    ("llm_backbone.mamba.backbone.layers.*.mmu_lora_A0.weight", "backbone.layers.*.lora_A.mmu.weight"),
    ("llm_backbone.mamba.backbone.layers.*.mmu_lora_B0.weight", "backbone.layers.*.lora_B.mmu.weight"),
    ("llm_backbone.mamba.backbone.layers.*.t2i_lora_A0.weight", "backbone.layers.*.lora_A.t2i.weight"),
    ("llm_backbone.mamba.backbone.layers.*.t2i_lora_B0.weight", "backbone.layers.*.lora_B.t2i.weight"),
    ("llm_backbone.mamba.backbone.layers.*", "backbone.layers.*"),
    ("projector.projector.*", "projector.*"),
)
"""(published, ours). The first matching rule counts; ``*`` stands for the same text on both sides."""
PART_NAMES = {
    VISION: r"(dino|siglip)_featurizer\..+",
    VQ: r"(encoder|decoder|quantize|quant_conv|post_quant_conv)\..+",
}
"""What may follow the prefixes of parts that keep their names. The modules of these parts check each name."""
TIED: tuple[tuple[str, str], ...] = (
    ("llm_backbone.mamba.lm_head.weight", "text_embedding.weight"),
    ("llm_backbone.mamba.img_head.weight", "image_table.weight"),
)
"""(published head, our table that it is equal to)."""
TRANSFORMERS = {"backbone.embeddings.weight": "backbone.embedding.weight"}
"""The name that transformers gives to Mamba-2's weights, where it has another, and Mamba-2's own."""
MAMBA2_LACKS = ("image_*", "caption_projection.*", "*_positions", "projector.*", "*.lora_?.*")
"""Patterns of our names for what OmniMamba adds to Mamba-2, for the ``optional`` of `load_language`."""
POSITION_TABLES = ("t2i_positions", "mmu_positions")
"""Published with a leading axis of size 1."""
CODEBOOK_USED = "quantize.codebook_used"
CODEBOOK_USED_SIZE = 65536
"""Size of LlamaGen's training statistics. Nothing uses them, but the published code expects to load them; zero here."""


@dataclass(frozen=True)
class PublishedWeights:
    """A published checkpoint split into parts: each part's tensors, and the heads that repeat a table."""

    language: dict[str, Tensor]
    """Language model and projector, under our names and shapes."""
    vision: dict[str, Tensor] = field(default_factory=dict)
    """Both ViTs under timm's names, with prefixes ``dino_featurizer.`` and ``siglip_featurizer.``."""
    vq: dict[str, Tensor] = field(default_factory=dict)
    """The VQ tokenizer under LlamaGen's names."""
    tied: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The number of tensors in each part, as text."""
        parts = {
            "language model": [name for name in self.language if not name.startswith("projector.")],
            "projector": [name for name in self.language if name.startswith("projector.")],
            "DINOv2": [name for name in self.vision if name.startswith("dino_")],
            "SigLIP": [name for name in self.vision if name.startswith("siglip_")],
            "VQ tokenizer": list(self.vq),
            "heads equal to their tables": list(self.tied),
        }
        return [f"{len(names)} tensors: {part}" for part, names in parts.items()]


def ours(name: str) -> str:
    """Our name of a published key of the language model or the projector.

    Raises:
        ValueError: no rule covers it.
    """
    return _rename(name, RULES, "published")


def published(name: str) -> str:
    """The published key of one of our names.

    Raises:
        ValueError: no rule covers it.
    """
    return _rename(name, [(mine, theirs) for theirs, mine in RULES], "our")


def from_published(weights: Mapping[str, Tensor]) -> PublishedWeights:
    """Split a published checkpoint into parts. Parts may be missing: a stage-1 checkpoint does not have all of them.

    Raises:
        ValueError: no rule covers some keys (all are named), or a head is not equal to its table.
    """
    parts = PublishedWeights({})
    unknown, heads = [], dict(TIED)
    for name, value in weights.items():
        prefix = next((prefix for prefix in PART_NAMES if name.startswith(prefix)), None)
        if name in heads:
            continue
        if prefix is None and _is_known(name):
            mine = ours(name)
            parts.language[mine] = value.squeeze(0) if mine in POSITION_TABLES else value
        elif prefix is not None and re.fullmatch(PART_NAMES[prefix], name.removeprefix(prefix)):
            (parts.vision if prefix == VISION else parts.vq)[name.removeprefix(prefix)] = value
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(_unknown("published", unknown))
    tied = _tied_heads(weights, parts.language)
    return PublishedWeights(parts.language, parts.vision, parts.vq, tied)


def to_published(parts: PublishedWeights) -> dict[str, Tensor]:
    """Build a published checkpoint: the inverse of `from_published`, with all heads.

    Raises:
        ValueError: no rule covers one of our names.
    """
    weights = {
        published(name): value[None] if name in POSITION_TABLES else value for name, value in parts.language.items()
    }
    weights |= {head: parts.language[table] for head, table in TIED if table in parts.language}
    weights |= {VISION + name: value for name, value in parts.vision.items()}
    weights |= {VQ + name: value for name, value in parts.vq.items()}
    if parts.vq:
        weights.setdefault(VQ + CODEBOOK_USED, torch.zeros(CODEBOOK_USED_SIZE))
    return weights


def from_mamba2(weights: Mapping[str, Tensor]) -> PublishedWeights:
    """The language model of ``state-spaces/mamba2-*``, under our names; the file may have those of transformers.

    Its embedding has as many rows as OmniMamba's, because both round up to a multiple of 16. The special tokens use
    rows that Mamba-2 leaves unused.

    Raises:
        ValueError: no rule covers some keys (all are named), or the head is not equal to the embedding.
    """
    prefixed = {LANGUAGE + TRANSFORMERS.get(name, name): value for name, value in weights.items()}
    known = [name for name in prefixed if name == TIED[0][0] or (_is_known(name) and _is_mamba2(ours(name)))]
    if len(known) < len(prefixed):
        raise ValueError(_unknown("Mamba-2", [name.removeprefix(LANGUAGE) for name in prefixed if name not in known]))
    return from_published(prefixed)


@torch.no_grad()
def load_language(
    model: nn.Module, language: Mapping[str, Tensor], origin: str, *, optional: Sequence[str] = ()
) -> NamesReport:
    """Copy weights under our names into ``model``, in place.

    Weights that match a pattern of ``optional`` may be missing in ``language``; the model keeps its own.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; nothing is copied then.
    """
    own = model.state_dict()
    report = match_names(origin, shapes_of(language), shapes_of(own), optional=optional)
    for name in report.loaded:
        own[name].copy_(language[name])
    return report


def _tied_heads(weights: Mapping[str, Tensor], language: Mapping[str, Tensor]) -> tuple[str, ...]:
    tied = [(head, table) for head, table in TIED if head in weights]
    for head, table in tied:
        if table not in language or not torch.equal(weights[head], language[table]):
            raise ValueError(
                f"{head} is not equal to {published(table)}; in this model they are one tensor, so one of the two "
                "would be lost"
            )
    return tuple(head for head, _ in tied)


def _is_mamba2(name: str) -> bool:
    return name == "text_embedding.weight" or (name.startswith("backbone.") and ".lora_" not in name)


def _is_known(name: str) -> bool:
    return any(_pattern(theirs).fullmatch(name) for theirs, _ in RULES)


def _rename(name: str, rules: Sequence[tuple[str, str]], whose: str) -> str:
    for pattern, replacement in rules:
        match = _pattern(pattern).fullmatch(name)
        if match:
            return replacement.replace("*", match.group(1)) if "*" in replacement else replacement
    raise ValueError(_unknown(whose, [name]))


def _pattern(rule: str) -> re.Pattern[str]:
    return re.compile(re.escape(rule).replace(r"\*", "(.+)"))


def _unknown(whose: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names)
    subject = f"key {shown} is" if len(names) == 1 else f"keys {shown} are"
    return f"{whose} checkpoint {subject} not known; modules/published.py holds the rules"
