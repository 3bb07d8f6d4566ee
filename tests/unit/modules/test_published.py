"""Published names, both ways."""

import pytest

from modules.omnimamba.model import OmniMamba
from modules.published import ours, published
from tests.unit.modules.omnimamba.conftest import TINY


def test_every_name_of_ours_goes_there_and_back() -> None:
    for name, _ in OmniMamba(TINY).named_parameters():
        assert ours(published(name)) == name


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (
            "llm_backbone.mamba.backbone.layers.7.mixer.in_proj.t2i_lora_B0.weight",
            "backbone.layers.7.mixer.in_proj.lora_B.t2i.weight",
        ),
        ("llm_backbone.mamba.backbone.layers.0.norm.weight", "backbone.layers.0.norm.weight"),
        ("llm_backbone.mamba.backbone.norm_f.weight", "backbone.norm.weight"),
        ("llm_backbone.mamba.backbone.img_embeddings.project_in.projector.4.bias", "image_mlp.4.bias"),
        ("projector.projector.0.weight", "projector.0.weight"),
    ],
)
def test_names(theirs: str, mine: str) -> None:
    assert ours(theirs) == mine
    assert published(mine) == theirs


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match=r"'vision_backbone\.x' is not known"):
        ours("vision_backbone.x")
