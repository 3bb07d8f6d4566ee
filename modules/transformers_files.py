"""Writes the language model so that transformers' ``Mamba2ForCausalLM.from_pretrained`` loads it.

Only what Mamba-2 has goes there: the text embedding, whose rows are also the head, the blocks with one task's adapters
merged in, and the final norm. Pictures, captions and learned positions stay with OmniMamba.
"""

from typing import Any

from torch import Tensor

from modules.omnimamba.config import ModelConfig

RENAMED = {"text_embedding.weight": "backbone.embeddings.weight", "backbone.norm.weight": "backbone.norm_f.weight"}
"""Our name, and transformers', where they differ."""


def language_weights(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The language model's part of a model without adapters, from our names to those of transformers."""
    kept = {name: value for name, value in own.items() if name.startswith(("text_embedding.", "backbone."))}
    return {RENAMED.get(name, name): value for name, value in kept.items()}


def language_config(config: ModelConfig, rows: int, end_of_text: int) -> dict[str, Any]:
    """``config.json`` for a text embedding of ``rows`` rows.

    Raises:
        ValueError: transformers cannot compute this model.
    """
    if config.norm_eps != config.gated_norm_eps:
        raise ValueError(
            f"transformers has one epsilon for all norms, but model.norm_eps={config.norm_eps:g} and "
            f"model.gated_norm_eps={config.gated_norm_eps:g}; leave out the form transformers"
        )
    return {
        "model_type": "mamba2",
        "architectures": ["Mamba2ForCausalLM"],
        "vocab_size": rows,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "state_size": config.d_state,
        "expand": config.expand,
        "head_dim": config.headdim,
        "num_heads": config.n_heads,
        "n_groups": 1,
        "conv_kernel": config.d_conv,
        "chunk_size": config.chunk_size,
        "layer_norm_epsilon": config.norm_eps,
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "torch_dtype": "float32",
    }
