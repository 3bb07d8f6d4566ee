"""Which parameters each stage trains (paper, Fig. 4)."""

from dataclasses import replace

import pytest

from modules.omnimamba.model import OmniMamba
from modules.stages import STAGES
from modules.trainable import set_trainable
from tests.unit.modules.omnimamba.conftest import TINY

PREFIXES = {
    "mmu_pretrain": ("projector.",),
    "t2i_pretrain": ("image_table.", "image_mlp.", "caption_projection.", "t2i_positions", "text_embedding."),
}


@pytest.mark.parametrize("stage", ["mmu_pretrain", "t2i_pretrain"])
def test_stage_1_trains_its_parts_and_its_adapters_alone(stage: str) -> None:
    model = OmniMamba(TINY)
    report = set_trainable(model, STAGES[stage].trainable)
    adapter = f".{stage[:3]}."
    expected = {
        n for n, _ in model.named_parameters() if n.startswith(PREFIXES[stage]) or ("lora" in n and adapter in n)
    }
    assert set(report.names) == expected == {n for n, p in model.named_parameters() if p.requires_grad}


def test_stage_2_trains_everything() -> None:
    model = OmniMamba(TINY)
    assert (
        set(set_trainable(model, STAGES["unified_finetune"].trainable).names) == dict(model.named_parameters()).keys()
    )


def test_extra_patterns_are_trained_and_reported() -> None:
    model = OmniMamba(TINY)
    report = set_trainable(model, STAGES["mmu_pretrain"].trainable, also_train=["text_embedding.*"])
    assert "text_embedding.weight" in report.names
    (line,) = [line for line in report.lines() if line.startswith("text embedding")]
    assert line.endswith("beyond the paper's stage: stage.also_train")
    assert not any("beyond" in line for line in report.lines() if line.startswith("projector"))


def test_freeze_wins() -> None:
    model = OmniMamba(TINY)
    report = set_trainable(model, STAGES["t2i_pretrain"].trainable, also_train=["text_*"], freeze=["text_embedding.*"])
    assert not any(name.startswith("text_embedding") for name in report.names)


def test_the_report_adds_up() -> None:
    model = OmniMamba(TINY)
    report = set_trainable(model, STAGES["mmu_pretrain"].trainable)
    assert sum(total for _, _, total, _ in report.parts) == sum(p.numel() for p in model.parameters())
    assert sum(trained for _, trained, _, _ in report.parts) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_the_stages_fit_models_without_adapters_or_image_table() -> None:
    for change in ({"lora": "none"}, {"vocabularies": "shared"}):
        for stage in STAGES.values():
            assert set_trainable(OmniMamba(replace(TINY, **change)), stage.trainable).names


@pytest.mark.parametrize("key", ["also_train", "freeze"])
def test_a_pattern_that_fits_nothing_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"stage\.{key} pattern 'text_embeding\.\*' matches no parameter"):
        set_trainable(OmniMamba(TINY), ["*"], **{key: ["text_embeding.*"]})


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is left to train"):
        set_trainable(OmniMamba(TINY), ["projector.*"], freeze=["*"])
