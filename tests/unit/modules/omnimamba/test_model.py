"""The whole model: one row serves both tasks, generation agrees with training, each part gets its gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from modules.objectives import LossWeights, task_losses, total_loss
from modules.omnimamba.config import TASKS, ModelConfig
from modules.omnimamba.decoding import NotFiniteError
from modules.omnimamba.model import OmniMamba

from .conftest import SAMPLING, TINY, batch_of, build, share_of_teacher_forcing


def test_both_tasks_in_one_row_equal_each_alone(model: OmniMamba) -> None:
    batch = batch_of()
    together = model(batch)
    for task in TASKS:
        alone = model({task: batch[task]})[task]
        torch.testing.assert_close(together[task].logits, alone.logits)
        assert torch.equal(together[task].labels, alone.labels)


def test_batch_of_one_equals_batch_of_many(model: OmniMamba) -> None:
    batch = batch_of(mmu=3)
    for task in TASKS:
        many = model.logits(task, batch[task])
        for row in range(3):
            one = model.logits(task, {name: value[row : row + 1] for name, value in batch[task].items()})
            torch.testing.assert_close(one[0], many[row])


def test_labels_are_predicted_from_the_position_before(model: OmniMamba) -> None:
    batch = batch_of()
    out = model(batch)
    text = model.logits("mmu", batch["mmu"])[:, -TINY.mmu_text_length - 1 : -1]
    chosen = batch["mmu"]["labels"] != -100
    torch.testing.assert_close(out["mmu"].logits, text[chosen])
    assert torch.equal(out["mmu"].labels, batch["mmu"]["labels"][chosen])
    # position caption_length + 3 holds soi, from which the first image token is predicted
    image = model.logits("t2i", batch["t2i"])[:, TINY.caption_length + 3 :][:, : TINY.image_tokens]
    torch.testing.assert_close(out["t2i"].logits, image.flatten(0, 1))


def test_the_answer_to_a_label_is_not_seen(model: OmniMamba) -> None:
    """Changing a token changes no logits before it."""
    batch = batch_of()["t2i"]
    before = model.logits("t2i", batch)
    changed = {**batch, "image_ids": batch["image_ids"].clone()}
    changed["image_ids"][:, 3] = (changed["image_ids"][:, 3] + 1) % TINY.image_vocab
    after = model.logits("t2i", changed)
    place = TINY.caption_length + 4 + 3
    torch.testing.assert_close(after[:, :place], before[:, :place])
    assert not torch.allclose(after[:, place], before[:, place])


@pytest.mark.parametrize("vocabularies", ["decoupled", "shared"])
def test_greedy_image_tokens_equal_teacher_forcing(vocabularies: str) -> None:
    config = replace(TINY, vocabularies=vocabularies)
    model, batch = build(config), batch_of(config)["t2i"]
    ids = model.generate_image_ids(batch["caption_ids"], uniforms_BI=None)
    logits = model.logits("t2i", {**batch, "image_ids": ids})
    rows = slice(config.vocab_size, None) if vocabularies == "shared" else slice(None)
    start = config.caption_length + 3
    assert torch.equal(logits[:, start : start + config.image_tokens, rows].argmax(-1), ids)
    one = model.generate_image_ids(batch["caption_ids"][1:2], uniforms_BI=None)
    assert torch.equal(one[0], ids[1])


def test_greedy_answers_equal_teacher_forcing(model: OmniMamba) -> None:
    batch = batch_of()["mmu"]
    prompt = batch["input_ids"][:, :7]
    ids = model.continue_text(batch["features"], prompt, max_new_tokens=4, end_id=None)
    logits = model.logits("mmu", {"features": batch["features"], "input_ids": torch.cat([prompt, ids], dim=1)})
    assert torch.equal(logits[:, -5:-1].argmax(-1), ids)


def test_a_row_is_filled_with_the_end_token_behind_its_first(model: OmniMamba) -> None:
    batch = batch_of(mmu=6)["mmu"]
    free = model.continue_text(batch["features"], batch["input_ids"], max_new_tokens=8, end_id=None)
    end = int(free[0, 2])
    ended = model.continue_text(batch["features"], batch["input_ids"], max_new_tokens=8, end_id=end)
    for open_row, row in zip(free.tolist(), ended.tolist(), strict=True):
        place = open_row.index(end) if end in open_row else len(open_row)
        assert row[:place] == open_row[:place][: len(row)]
        assert set(row[place:]) <= {end}


def test_sampling_does_not_depend_on_the_batch(model: OmniMamba) -> None:
    captions = batch_of()["t2i"]["caption_ids"]
    draws = torch.rand(3, TINY.image_tokens, generator=torch.Generator().manual_seed(0))
    many = model.generate_image_ids(captions, uniforms_BI=draws, temperature=1.3, top_k=10)
    for row in range(3):
        one = model.generate_image_ids(
            captions[row : row + 1], uniforms_BI=draws[row : row + 1], temperature=1.3, top_k=10
        )
        assert torch.equal(one[0], many[row])


@pytest.mark.parametrize("settings", SAMPLING)
@pytest.mark.parametrize("vocabularies", ["decoupled", "shared"])
def test_drawn_tokens_are_those_of_teacher_forcing(settings: dict[str, Any], vocabularies: str) -> None:
    model = build(replace(TINY, image_tokens=16, t2i_positions=30, vocabularies=vocabularies))
    # one of 80 numbers may lie as close to a step of the distribution as float32 is exact
    assert share_of_teacher_forcing(model, settings) >= 79 / 80


@torch.no_grad()
def test_guided_tokens_are_those_of_teacher_forcing_with_and_without_the_caption(model: OmniMamba) -> None:
    captions, empty = batch_of()["t2i"]["caption_ids"], batch_of(t2i=1, seed=9)["t2i"]["caption_ids"][0]
    ids = model.generate_image_ids(captions, uniforms_BI=None, guidance=3.0, empty_ids_C=empty)
    start = TINY.caption_length + 3

    def logits(caption_ids: torch.Tensor) -> torch.Tensor:
        both = {"caption_ids": caption_ids, "image_ids": ids}
        return model.logits("t2i", both)[:, start : start + TINY.image_tokens]

    seen, unseen = logits(captions), logits(empty.expand_as(captions))
    assert torch.equal(ids, (unseen + 3 * (seen - unseen)).argmax(-1))
    assert not torch.equal(ids, model.generate_image_ids(captions, uniforms_BI=None))


def test_guidance_of_0_draws_what_the_empty_caption_draws(model: OmniMamba) -> None:
    captions, empty = batch_of()["t2i"]["caption_ids"], batch_of(t2i=1, seed=9)["t2i"]["caption_ids"][0]
    draws = torch.rand(3, TINY.image_tokens, generator=torch.Generator().manual_seed(0))
    found = model.generate_image_ids(captions, uniforms_BI=draws, guidance=0.0, empty_ids_C=empty)
    assert torch.equal(found, model.generate_image_ids(empty.expand_as(captions), uniforms_BI=draws))


def test_gradients_reach_exactly_the_parts_of_a_task(model: OmniMamba) -> None:
    batch = batch_of()
    losses = task_losses(model(batch))
    only = {"mmu": ("projector.", "mmu_positions"), "t2i": ("image_", "caption_projection.", "t2i_positions")}
    for task, other in (("mmu", "t2i"), ("t2i", "mmu")):
        model.zero_grad()
        losses[task].backward(retain_graph=True)
        for name, parameter in model.named_parameters():
            # sums of decays run over sequence boundaries within a chunk and cancel to rounding: 1e-13 is nothing
            touched = parameter.grad is not None and bool(parameter.grad.abs().max() > 1e-9)
            foreign = f".{other}." in name or name.startswith(only[other])
            assert touched == (not foreign), f"{task} loss and {name}"


def test_one_backward_of_both_gives_the_sum_of_each() -> None:
    """Also the adapters': the pitfall of switching one active adapter between two forward passes."""
    model, batch = build(), batch_of()
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    losses = task_losses(model(batch))
    both = torch.autograd.grad(losses["mmu"] + losses["t2i"], parameters)
    for name, parameter, gradient in zip(names, parameters, both, strict=True):
        apart = torch.zeros_like(parameter)
        for task in TASKS:
            (part,) = torch.autograd.grad(task_losses(model({task: batch[task]}))[task], parameter, allow_unused=True)
            apart += part if part is not None else 0
        torch.testing.assert_close(gradient, apart, msg=lambda m, name=name: f"{name}: {m}")


def test_adapters_of_a_task_without_positions_still_get_a_gradient(model: OmniMamba) -> None:
    """Zero, but there: DDP and ZeRO wait for it."""
    task_losses(model({"mmu": batch_of()["mmu"]}))["mmu"].backward()
    gradients = [p.grad for name, p in model.named_parameters() if ".t2i." in name]
    assert gradients
    assert all(g is not None and not g.any() for g in gradients)


def test_shared_vocabularies_use_one_table() -> None:
    config = replace(TINY, vocabularies="shared")
    model, batch = build(config), batch_of(config)
    out = model(batch)
    assert out["t2i"].logits.shape[-1] == out["mmu"].logits.shape[-1] == TINY.vocab_size + TINY.image_vocab
    assert torch.equal(out["t2i"].labels, batch["t2i"]["image_ids"].flatten() + TINY.vocab_size)
    assert not any(name.startswith("image_table") for name, _ in model.named_parameters())


def test_without_lora_there_are_no_adapters() -> None:
    model = build(replace(TINY, lora="none"))
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert task_losses(model(batch_of()))["t2i"].isfinite()


def test_loss_is_the_mean_over_each_tasks_own_labels(model: OmniMamba) -> None:
    batch = batch_of()
    losses = task_losses(model(batch))
    logits = model.logits("mmu", batch["mmu"])[:, -TINY.mmu_text_length - 1 : -1].float()
    expected = F.cross_entropy(logits.transpose(1, 2), batch["mmu"]["labels"], ignore_index=-100)
    torch.testing.assert_close(losses["mmu"], expected)


def test_a_sequence_longer_than_its_positions_is_refused(model: OmniMamba) -> None:
    batch = batch_of()["mmu"]
    with pytest.raises(ValueError, match=r"max_new_tokens=30, but .* 40 MMU positions leave room for 26"):
        model.continue_text(batch["features"], batch["input_ids"], max_new_tokens=30, end_id=None)


def test_a_prompt_without_room_for_an_answer_is_refused(model: OmniMamba) -> None:
    features, ids = batch_of()["mmu"]["features"], torch.zeros(2, 40, dtype=torch.long)
    with pytest.raises(ValueError, match=r"a prompt of 40 ids and 4 image features leaves no room .* 40 MMU positions"):
        model.continue_text(features, ids, max_new_tokens=1, end_id=None)


def test_tokens_of_weights_that_diverged_are_refused(model: OmniMamba) -> None:
    batch = batch_of()
    with torch.no_grad():
        model.backbone.norm.weight[0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"non-finite numbers, .* Use an earlier checkpoint"):
        model.generate_image_ids(batch["t2i"]["caption_ids"], uniforms_BI=torch.rand(3, TINY.image_tokens), top_k=5)
    with pytest.raises(NotFiniteError, match="non-finite"):
        model.continue_text(batch["mmu"]["features"], batch["mmu"]["input_ids"], max_new_tokens=2, end_id=None)


def test_images_of_another_size_are_refused(model: OmniMamba) -> None:
    batch = batch_of()["mmu"]
    with pytest.raises(ValueError, match=r"model\.vision\.image_size=8 needs \(3, 8, 8\)"):
        model.generate_text(
            torch.zeros(1, 3, 9, 9, dtype=torch.uint8), batch["input_ids"][:1], max_new_tokens=1, end_id=0
        )


def test_a_model_for_given_features_has_no_encoder() -> None:
    vision = replace(TINY.vision, kind="features", given_patches=4, given_width=48)
    model = build(replace(TINY, vision=vision))
    with pytest.raises(ValueError, match=r"model\.vision\.kind=features has no encoder"):
        model.vision(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"headdim": 7}, "headdim=7 does not divide"),
        ({"vocab_size": 33}, "vocab_size=33 is not a multiple of 16"),
        ({"t2i_positions": 10}, r"a T2I sequence has 16 positions .* raise it to at least 16"),
        ({"mmu_positions": 10}, r"an MMU sequence has 15 positions .* raise it to at least 15"),
        ({"d_state": 0}, "d_state=0 must be at least 1"),
        ({"image_table_std": 0.0}, r"image_table_std=0\.0 must be above 0"),
        ({"A_init_range": (2.0, 1.0)}, r"A_init_range=\[2\.0, 1\.0\] must be two rates above 0"),
        ({"adapters": replace(TINY.adapters, rank=0)}, "rank=0 must be at least 1"),
        ({"adapters": replace(TINY.adapters, dropout=1.0)}, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"vision": replace(TINY.vision, patch_size=3)}, "patch_size=3 does not divide"),
    ],
)
def test_broken_rules_of_the_configuration(change: dict[str, object], message: str) -> None:
    import re

    assert any(re.search(message, problem) for problem in replace(TINY, **change).problems())


def test_the_published_sizes_are_the_defaults() -> None:
    """Parameter shapes of the published 1.3B checkpoint."""
    with torch.device("meta"):
        model = OmniMamba(
            replace(ModelConfig(), vision=replace(TINY.vision, kind="features", given_patches=729, given_width=2176))
        )
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["text_embedding.weight"] == (50288, 2048)
    assert shapes["backbone.layers.47.mixer.in_proj.weight"] == (8512, 2048)
    assert shapes["backbone.layers.0.mixer.in_proj.lora_B.t2i.weight"] == (8512, 8)
    assert shapes["projector.0.weight"] == (8704, 2176)
    assert shapes["t2i_positions"] == (329, 2048)
    language_model = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("backbone", "text")))
    assert 1.3e9 < language_model < 1.4e9


def test_rows_of_different_length_have_the_losses_and_gradients_of_padded_ones(model: OmniMamba) -> None:
    batch = batch_of(mmu=3)
    lengths = [6, 11, 9]
    for row, length in enumerate(lengths):
        batch["mmu"]["labels"][row, length - 4 :] = -100
    ragged = {**batch, "mmu": {**batch["mmu"], "lengths": lengths}}
    found = []
    for each in (batch, ragged):
        model.zero_grad()
        losses = task_losses(model(each))
        total_loss(losses, LossWeights()).backward()
        found.append((losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (padded, padded_gradients), (short, short_gradients) = found
    torch.testing.assert_close(short, padded, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(short_gradients, padded_gradients, rtol=1e-4, atol=1e-6)


def test_rows_of_different_length_make_a_shorter_row(model: OmniMamba, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = model.backbone.forward

    def watched(x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append((x.shape, *rest))
        return forward(x, *rest, **named)

    monkeypatch.setattr(model.backbone, "forward", watched)
    batch = batch_of(mmu=3, t2i=1)
    model({**batch, "mmu": {**batch["mmu"], "lengths": [6, 11, 9]}})
    ((shape, segments, seq_idx),) = seen
    mmu, t2i = [6 + 4, 11 + 4, 9 + 4], 16  # four patches; caption 5, six image tokens, five special ones
    assert shape == (1, sum(mmu) + t2i, TINY.d_model)
    assert segments == (sum(mmu), t2i)
    assert seq_idx.tolist() == [[0] * mmu[0] + [1] * mmu[1] + [2] * mmu[2] + [3] * t2i]
