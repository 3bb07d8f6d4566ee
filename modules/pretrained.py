"""Loads third-party weights of the language model to start from: Mamba-2's, or a published OmniMamba's."""

from pathlib import Path

import torch
from torch import Tensor, nn

from modules.omnimamba.weight_names import shortened
from modules.published import LANGUAGE, MAMBA2_LACKS, from_mamba2, from_published, load_language
from modules.weight_files import read_weights

STAGE_1_LACKS = ("projector.*",)
"""What a published checkpoint of T2I pre-training does not contain."""


def load_pretrained(model: nn.Module, path: Path) -> list[str]:
    """Copy the weights in ``path`` into ``model``; their names tell what they are. Returns a report of all keys.

    ``state-spaces/mamba2-*``, also as transformers names it, has blocks, final norm and text embedding. A published
    OmniMamba has the whole language model and the projector. Its ViTs and VQ tokenizer are not loaded here;
    ``model.vision.*.weights`` and ``model.vq`` name their files.

    Raises:
        FileNotFoundError: see `read_weights`.
        ValueError: the file cannot be read, its names are of neither kind, or they do not fit the model.
    """
    weights = read_weights(path)
    origin = f"{path} (pretrained)"
    if any(name.startswith(LANGUAGE) for name in weights):
        parts = from_published(weights)
        report = load_language(model, parts.language, origin, optional=STAGE_1_LACKS)
        beside = [line for line in parts.lines() if not line.startswith("0 ")]
        return [*report.lines(), *(f"  of which {line}" for line in beside)]
    if "embeddings.weight" in weights:  # transformers' model without its head
        weights = {f"backbone.{name}": value for name, value in weights.items()}
    if any(name.startswith("backbone.") for name in weights):
        language = _with_image_rows(model, from_mamba2(weights).language)
        return load_language(model, language, origin, optional=MAMBA2_LACKS).lines()
    raise ValueError(
        f"pretrained={path} holds neither OmniMamba's nor Mamba-2's names ({LANGUAGE}... or backbone....); "
        f"it has {shortened(weights)}"
    )


def _with_image_rows(model: nn.Module, language: dict[str, Tensor]) -> dict[str, Tensor]:
    """If text and images share a vocabulary: put Mamba-2's rows for text before the model's own rows for images."""
    config = getattr(model, "config", None)
    name = "text_embedding.weight"
    if config is None or config.vocabularies != "shared" or len(language.get(name, ())) != config.vocab_size:
        return language
    own = model.state_dict()[name]
    return language | {name: torch.cat([language[name].to(own.dtype), own[config.vocab_size :]])}
