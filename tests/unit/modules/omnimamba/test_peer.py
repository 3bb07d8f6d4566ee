"""The backbone against an independent implementation: transformers' Mamba-2, and the weights that it saves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, Mamba2Model

from modules.omnimamba.adapters import segments_of
from modules.omnimamba.backbone import Backbone
from modules.pretrained import load_pretrained

from .conftest import TINY, build

PEER = Mamba2Config(
    hidden_size=TINY.d_model,
    num_hidden_layers=TINY.n_layer,
    state_size=TINY.d_state,
    head_dim=TINY.headdim,
    num_heads=TINY.n_heads,
    expand=TINY.expand,
    n_groups=1,
    conv_kernel=TINY.d_conv,
    chunk_size=TINY.chunk_size,
    layer_norm_epsilon=TINY.norm_eps,
    vocab_size=32,
    use_bias=False,
    use_conv_bias=True,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize("kind", [Mamba2ForCausalLM, Mamba2Model])
def test_weights_that_the_peer_saves_are_loaded_under_its_names(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = kind(PEER)
    peer.save_pretrained(tmp_path)
    model = build()
    load_pretrained(model, tmp_path)
    theirs = {name.removeprefix("backbone."): value for name, value in peer.named_parameters()}
    ours = dict(model.named_parameters())
    assert torch.equal(ours["text_embedding.weight"], theirs.pop("embeddings.weight"))
    assert torch.equal(ours["backbone.norm.weight"], theirs.pop("norm_f.weight"))
    assert len(theirs) == 9 * TINY.n_layer
    for name, value in theirs.items():
        assert torch.equal(ours[f"backbone.{name}"], value), name


def test_hidden_states_and_gradients_equal_the_peers() -> None:
    config = replace(TINY, lora="none")
    torch.manual_seed(0)
    peer = Mamba2Model(PEER)
    ours = Backbone(config)
    names = {name: name.replace("norm_f", "norm") for name, _ in peer.named_parameters() if "embeddings" not in name}
    ours.load_state_dict({mine: dict(peer.named_parameters())[theirs] for theirs, mine in names.items()})
    x = torch.randn(2, 21, config.d_model)
    mine, theirs = ours(x, segments_of("mmu", 21)), peer(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)  # float32, sums in another order
    weight = torch.randn_like(mine)
    (mine * weight).sum().backward()
    (theirs * weight).sum().backward()
    parameters = dict(ours.named_parameters())
    for name, parameter in peer.named_parameters():
        if name in names:
            expected, found = parameter.grad, parameters[names[name]].grad
            assert expected is not None
            assert found is not None
            assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name
