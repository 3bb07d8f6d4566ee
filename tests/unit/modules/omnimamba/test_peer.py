"""The backbone against an independent implementation: transformers' Mamba-2."""

import torch
from transformers import Mamba2Config, Mamba2Model

from modules.omnimamba.adapters import segments_of
from modules.omnimamba.backbone import Backbone

from .conftest import TINY


def test_hidden_states_and_gradients_equal_the_peers() -> None:
    from dataclasses import replace

    config = replace(TINY, lora="none")
    torch.manual_seed(0)
    peer = Mamba2Model(
        Mamba2Config(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layer,
            state_size=config.d_state,
            head_dim=config.headdim,
            num_heads=config.n_heads,
            expand=config.expand,
            n_groups=1,
            conv_kernel=config.d_conv,
            chunk_size=config.chunk_size,
            layer_norm_epsilon=config.norm_eps,
            vocab_size=32,
            use_bias=False,
            use_conv_bias=True,
        )
    )
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
