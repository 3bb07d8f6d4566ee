"""Names of the published OmniMamba checkpoint, mapped to ours and back.

Both ways are explicit: a key that no rule covers is an error, never dropped.
"""

import re
from collections.abc import Mapping

from torch import Tensor

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
"""(published, ours); the first rule that fits counts, ``*`` stands for the same text on both sides."""

POSITION_TABLES = ("t2i_positions", "mmu_positions")
"""Published with a leading axis of size 1."""


def ours(name: str) -> str:
    """Our name of a published key.

    Raises:
        KeyError: no rule covers it.
    """
    return _rename(name, RULES, "published")


def published(name: str) -> str:
    """The published key of one of our names.

    Raises:
        KeyError: no rule covers it.
    """
    return _rename(name, [(mine, theirs) for theirs, mine in RULES], "our")


def weights_from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under our names and shapes.

    Raises:
        KeyError: a key is covered by no rule.
    """
    renamed = {ours(name): value for name, value in weights.items()}
    return {name: value[0] if name in POSITION_TABLES else value for name, value in renamed.items()}


def _rename(name: str, rules: tuple[tuple[str, str], ...] | list[tuple[str, str]], whose: str) -> str:
    for pattern, replacement in rules:
        match = re.fullmatch(re.escape(pattern).replace(r"\*", "(.+)"), name)
        if match:
            return replacement.replace("*", match.group(1)) if "*" in replacement else replacement
    raise KeyError(f"{whose} checkpoint key '{name}' is not known; modules/published.py holds the rules")
