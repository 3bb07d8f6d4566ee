"""A run's start from Mamba-2's or a published OmniMamba's weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.pretrained import load_pretrained
from modules.published import PublishedWeights, to_published
from tests.mamba2_files import mamba2_weights
from tests.unit.modules.omnimamba.conftest import TINY, build


def other(**changes: int) -> torch.nn.Module:
    """A model whose every weight differs from `build`'s, whatever was initialised to a constant too."""
    model = build(replace(TINY, init_seed=1, **changes))
    for parameter in model.parameters():
        parameter.data += 1
    return model


def test_mamba2_brings_blocks_norm_and_text_embedding(tmp_path: Path) -> None:
    source, model = build().state_dict(), other()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({name: value.half() for name, value in mamba2_weights(source).items()}, tmp_path / "pytorch_model.bin")
    lines = load_pretrained(model, tmp_path)
    for name, value in model.state_dict().items():
        ours = name == "text_embedding.weight" or (name.startswith("backbone.") and ".lora_" not in name)
        assert torch.equal(value, source[name].half().float() if ours else before[name]), name
        assert value.dtype == torch.float32
    assert lines[0].endswith("(pretrained)")
    assert "not in it, left as they are" in lines[1]


def test_mamba2_brings_the_texts_rows_of_a_shared_vocabulary(tmp_path: Path) -> None:
    source = build().state_dict()
    model = build(replace(TINY, vocabularies="shared"))
    own = model.text_embedding.weight.detach().clone()
    torch.save(mamba2_weights(source), tmp_path / "pytorch_model.bin")
    load_pretrained(model, tmp_path)
    rows = TINY.vocab_size
    assert torch.equal(model.text_embedding.weight[:rows], source["text_embedding.weight"])
    assert torch.equal(model.text_embedding.weight[rows:], own[rows:])
    assert len(own) == rows + TINY.image_vocab


def test_a_published_checkpoint_brings_everything(tmp_path: Path) -> None:
    source, model = build().state_dict(), other()
    weights = to_published(PublishedWeights(source, vq={"quant_conv.bias": torch.rand(8)}))
    save_file({name: value.clone() for name, value in weights.items()}, tmp_path / "omnimamba.safetensors")
    lines = load_pretrained(model, tmp_path / "omnimamba.safetensors")
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())
    assert lines == [
        f"{len(source)} tensors from {tmp_path / 'omnimamba.safetensors'} (pretrained)",
        f"  of which {len(source) - 6} tensors: language model",
        "  of which 6 tensors: projector",
        "  of which 2 tensors: VQ tokenizer",
        "  of which 2 tensors: heads equal to their tables",
    ]


def test_of_what_a_checkpoint_may_lack_only_the_projector_is_forgiven(tmp_path: Path) -> None:
    source, model = build().state_dict(), other()
    weights = {name: value.clone() for name, value in to_published(PublishedWeights(source)).items()}
    without = {name: value for name, value in weights.items() if not name.startswith("projector.")}
    save_file(without, tmp_path / "t2i.safetensors")
    assert any("6 not in it" in line for line in load_pretrained(model, tmp_path / "t2i.safetensors"))
    del without["llm_backbone.mamba.backbone.pos_embed"]
    save_file(without, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"less\.safetensors \(pretrained\) do not fit\. 1 missing: t2i_positions"):
        load_pretrained(model, tmp_path / "less.safetensors")


def test_other_sizes_and_other_names_are_refused(tmp_path: Path) -> None:
    save_file(
        {name: value.clone() for name, value in mamba2_weights(build().state_dict()).items()},
        tmp_path / "mamba.safetensors",
    )
    with pytest.raises(ValueError, match=r"of another shape: .*conv1d\.weight"):
        load_pretrained(other(d_state=TINY.d_state * 2), tmp_path / "mamba.safetensors")
    save_file({"model.embed_tokens.weight": torch.ones(1)}, tmp_path / "llama.safetensors")
    with pytest.raises(ValueError, match=r"holds neither OmniMamba's nor Mamba-2's names .*it has model\.embed_tokens"):
        load_pretrained(other(), tmp_path / "llama.safetensors")
