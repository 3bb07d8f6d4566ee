from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor

from callbacks.measures import speed as module
from callbacks.measures.measure import EvaluationContext
from callbacks.measures.registry import EvaluationConfig, build_measures
from callbacks.measures.running import run_measure
from callbacks.measures.speed import Speed, SpeedConfig
from modules import timing
from modules.omnimamba.model import OmniMamba

Make = Callable[..., EvaluationContext]
SMALL = SpeedConfig(batch=2, warmup=1, batches=4)


class Story:
    """A clock that only moves when told to, and what was drawn on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.batches: list[int] = []


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Story:
    """The prompt takes 1 s, a step 1/4 s, decoding 2 s; with the fourth batch everything takes twice as long."""
    story = Story()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: story.now)
    generate = OmniMamba.generate_image_ids

    def slow(seconds: float) -> None:
        story.now += seconds * (2 if len(story.batches) == 4 else 1)

    def told(self: OmniMamba, caption_ids: Tensor, **more: object) -> Tensor:
        story.batches.append(len(caption_ids))
        hooks = [self.backbone.register_forward_pre_hook(lambda *_: slow(1))]
        step, numbers = self.backbone.step, count()

        def slow_step(*given: object) -> Tensor:
            slow(0.25)
            next(numbers)
            return step(*given)  # type: ignore[arg-type]

        self.backbone.step = slow_step  # type: ignore[method-assign, assignment]
        try:
            return generate(self, caption_ids, **more)  # type: ignore[arg-type]
        finally:
            self.backbone.step = step  # type: ignore[method-assign]
            hooks[0].remove()
            assert next(numbers) == 15  # 16 tokens: the first needs no step

    monkeypatch.setattr(OmniMamba, "generate_image_ids", told)
    decode = type(story_vq()).decode
    monkeypatch.setattr(type(story_vq()), "decode", lambda self, codes: (slow(2), decode(self, codes))[1])
    return story


def story_vq() -> torch.nn.Module:
    from modules.omnimamba.vq import PatchKMeans

    return PatchKMeans(torch.zeros(16, 48, dtype=torch.uint8), image_size=16, patch_size=4)


def test_parts_are_told_apart_and_medians_taken(story: Story, make_context: Make) -> None:
    context = make_context()
    result = run_measure(Speed(SMALL), context)
    assert result is not None
    # one batch of warm-up, four timed ones of two pictures; the third of these took twice as long
    assert story.batches == [2] * 5
    steps = 15 / 4
    assert result.metrics == pytest.approx(
        {
            "img_per_s": 2 / (1 + steps + 2),
            "prefill_s": 1,
            "tokens_s": steps,
            "vq_s": 2,
            "total_s": 1 + steps + 2,
            # quartiles of 1, 1, 1, 2 lie at 1 and 1.25
            "prefill_s/iqr": 0.25,
            "tokens_s/iqr": steps / 4,
            "vq_s/iqr": 0.5,
            "total_s/iqr": (1 + steps + 2) / 4,
        }
    )
    assert (result.protocol["batch"], result.protocol["n"], result.protocol["warmup"]) == (2, 4, 1)
    assert result.protocol["device"].startswith("CPU")
    assert result.protocol["parameters"] == sum(p.numel() for p in context.model.parameters())


def test_rank_0_times_alone(story: Story, make_context: Make) -> None:
    measure = Speed(SMALL)
    measure.generate(make_context(rank=1, world_size=2))
    assert story.batches == []
    measure.generate(make_context(rank=0, world_size=2))
    assert len(story.batches) == 5
    assert len(measure.records(make_context())) == 4


def test_what_was_timed_is_not_timed_again(story: Story, make_context: Make) -> None:
    context = make_context()
    run_measure(Speed(SMALL), context)
    run_measure(Speed(SMALL), context)
    assert len(story.batches) == 5


def test_figures_of_another_machine_are_refused(
    story: Story, make_context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context()
    run_measure(Speed(SMALL), context)
    monkeypatch.setattr(module, "_device_name", lambda device: "another")
    with pytest.raises(ValueError, match=r"made under another protocol \(device: 'CPU .*, 'another' now"):
        run_measure(Speed(SMALL), context)


def test_training_goes_on_in_its_modes_and_without_hooks(make_context: Make) -> None:
    context = make_context()
    context.model.train()
    run_measure(Speed(replace(SMALL, batches=1, warmup=0)), context)
    assert context.model.training
    assert not context.model.backbone._forward_hooks


def test_less_than_the_protocol_has_another_name() -> None:
    assert Speed(SpeedConfig()).name == Speed(SpeedConfig(batches=30)).name == "speed"
    for changes in ({"batch": 8}, {"batch": 32}, {"warmup": 2}, {"batches": 9}):
        assert Speed(SpeedConfig(**changes)).name == "speed_mini"


def test_is_configured_like_other_measures(make_context: Make) -> None:
    [measure] = build_measures(EvaluationConfig(speed=SpeedConfig()))
    assert (measure.key, measure.name) == ("speed", "speed")
    with pytest.raises(ValueError, match=r"model.vq is empty"):
        measure.check(make_context(vq=None))
    assert EvaluationConfig(speed=SpeedConfig(batch=0, batches=0, warmup=-1)).problems() == [
        "evaluation.speed: batch=0 must be at least 1",
        "evaluation.speed: batches=0 must be at least 1",
        "evaluation.speed: warmup=-1 must be 0 or more",
    ]


def test_a_gpu_is_waited_for_before_and_behind_all_marks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            Event.made += 1
            self.at = 250.0 * Event.made**2

        def record(self, stream: object) -> None:
            happened.append("mark")

        def elapsed_time(self, later: "Event") -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append("wait"))
    clock = module.Clock(torch.device("cuda"))
    for _ in range(3):
        clock.mark()
    assert clock.seconds() == [0.75, 1.25]  # from milliseconds
    assert happened == ["wait", "mark", "mark", "mark", "wait"]
