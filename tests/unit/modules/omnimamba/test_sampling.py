"""Sampling by the inverse CDF."""

import pytest
import torch

from modules.omnimamba.sampling import choose


def test_greedy() -> None:
    assert choose(torch.tensor([[0.0, 3.0, 1.0]]), None).tolist() == [1]


def test_draws_follow_the_distribution() -> None:
    """An even grid of uniforms takes each token as often as its probability says."""
    probabilities = torch.tensor([0.5, 0.125, 0.375])
    draws = (torch.arange(1000) + 0.5) / 1000
    chosen = choose(probabilities.log().expand(1000, 3), draws)
    assert (chosen.bincount(minlength=3) / 1000).tolist() == pytest.approx(probabilities.tolist(), abs=1e-3)


def test_temperature_sharpens() -> None:
    logits = torch.tensor([0.6, 0.4]).log().expand(1000, 2)
    draws = (torch.arange(1000) + 0.5) / 1000
    share = (choose(logits, draws, temperature=0.5) == 0).float().mean()
    assert share == pytest.approx(0.36 / (0.36 + 0.16), abs=2e-3)


def test_top_k_and_top_p_leave_only_the_likely_tokens() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(1000, 4)
    draws = (torch.arange(1000) + 0.5) / 1000
    assert set(choose(logits, draws, top_k=2).tolist()) == {0, 1}
    assert (choose(logits, draws, top_k=2) == 0).float().mean() == pytest.approx(4 / 7, abs=2e-3)
    assert set(choose(logits, draws, top_p=0.7).tolist()) == {0, 1}
    assert set(choose(logits, draws, top_p=0.71).tolist()) == {0, 1, 2}
    assert set(choose(logits, draws, top_p=0.01).tolist()) == {0}
    assert set(choose(logits, draws, top_p=1e-20).tolist()) == {0}


def test_the_ends_of_the_unit_interval_are_tokens() -> None:
    logits = torch.randn(2, 50_000)
    highest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    ids = choose(logits, torch.tensor([0.0, highest]))
    assert ((ids >= 0) & (ids < 50_000)).all()
    impossible = torch.tensor([[0.0, -torch.inf]])
    assert choose(impossible, highest[None]).tolist() == [0]


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_give_an_id_that_is_one(odd: float) -> None:
    """In a GPU's recorded graph another id would end the process; the model refuses what comes out of them later."""
    for settings in ({}, {"top_k": 3}, {"top_p": 0.5}):
        ids = choose(torch.full((2, 16), odd), torch.tensor([0.0, 0.9]), **settings)  # type: ignore[arg-type]
        assert ((ids >= 0) & (ids < 16)).all()


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name}=.* must"):
        choose(torch.zeros(1, 3), torch.zeros(1), **setting)  # type: ignore[arg-type]
