"""Weights as ``state-spaces/mamba2-*`` has them, made of a model of ours."""

from collections.abc import Mapping

from torch import Tensor

from modules.published import LANGUAGE, PublishedWeights, to_published


def mamba2_weights(language: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of our language model a Mamba-2 checkpoint holds, under its names."""
    kept = {
        name: value
        for name, value in language.items()
        if name == "text_embedding.weight" or (name.startswith("backbone.") and ".lora_" not in name)
    }
    return {name.removeprefix(LANGUAGE): value.clone() for name, value in to_published(PublishedWeights(kept)).items()}
