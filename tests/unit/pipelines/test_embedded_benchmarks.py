"""Perfect and trivial answers to the embedded scenes, in the official files as pipelines.evaluate reads them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from callbacks.measures.answers import QuestionMeasure
from callbacks.measures.fid import Fid
from callbacks.measures.measure import EvaluationContext, Measure, Result
from callbacks.measures.registry import build_measures
from callbacks.measures.running import run_measure
from datamodules.benchmarks.questions import Question
from datamodules.encode import encode_caption, encode_question
from datamodules.images import centre_crop, read_image, read_mmu_pixels, to_tensor
from pipelines.run.trained import context_of, load_trained

WHOLE = ["evaluation.pope.limit=null", "evaluation.gqa.limit=null", "evaluation.gqa.max_new_tokens=30"]
Setting = tuple[EvaluationContext, dict[str, Measure]]


@pytest.fixture
def setting(run_folder: Path) -> Setting:
    trained = load_trained(run_folder, [*WHOLE, "evaluation.fid.n=4"])
    return context_of(trained), {measure.key: measure for measure in build_measures(trained.config.evaluation)}


def run(measure: Measure, context: EvaluationContext) -> Result:
    measure.check(context)
    result = run_measure(measure, context)
    assert result is not None
    return result


def answering(
    measure: Measure, context: EvaluationContext, answer: Callable[[Question], str], monkeypatch: pytest.MonkeyPatch
) -> Result:
    """The result of a model that knows a question by its picture and its ids."""
    assert isinstance(measure, QuestionMeasure)
    size, end = context.model.config.vision.image_size, context.tokenizer.end_of_text
    known = {}
    for question in measure.questions.values():
        ids = encode_question(context.tokenizer, measure.asked(question), context.template)
        pixels = read_mmu_pixels(question.image, size).numpy().tobytes()
        known[pixels, tuple(ids)] = [*context.tokenizer.encode(answer(question)), end]

    def generate_text(images: Tensor, prompt_ids: Tensor, *, max_new_tokens: int, end_id: int) -> Tensor:
        keys = [(i.numpy().tobytes(), tuple(p.tolist())) for i, p in zip(images, prompt_ids, strict=True)]
        rows = [known[key][:max_new_tokens] for key in keys]
        return torch.tensor([row + [end_id] * (max_new_tokens - len(row)) for row in rows])

    monkeypatch.setattr(context.model, "generate_text", generate_text)
    return run(measure, context)


def test_pope(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    context, measures = setting
    perfect = answering(measures["pope"], context, lambda question: f"{question.answer.capitalize()}.", monkeypatch)
    assert perfect.protocol["splits"] == {"random": 24, "popular": 24, "adversarial": 24}
    others = {"yes_ratio": 0.5, "unparsed_ratio": 0}
    for name, value in perfect.metrics.items():
        assert value == others.get(name.rpartition("/")[2], 1), name


def test_pope_trivial(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    context, measures = setting
    trivial = answering(measures["pope"], context, lambda _: "Yes", monkeypatch)
    assert trivial.metrics == trivial.baselines
    assert trivial.metrics["f1_macro"] == pytest.approx(2 / 3)


def test_gqa(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    context, measures = setting
    perfect = answering(measures["gqa"], context, lambda question: question.answer, monkeypatch)
    assert perfect.metrics.pop("distribution") == 0
    assert {"accuracy", "binary", "open"} <= perfect.metrics.keys()
    assert set(perfect.metrics.values()) == {1.0}


def test_gqa_trivial(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    context, measures = setting
    measure = measures["gqa"]
    assert isinstance(measure, QuestionMeasure)
    [(most, times)] = Counter(question.answer for question in measure.questions.values()).most_common(1)
    trivial = answering(measure, context, lambda _: most, monkeypatch)
    assert trivial.metrics["accuracy"] == trivial.baselines["accuracy"] == times / len(measure.questions)


def drawing(
    measure: Measure, context: EvaluationContext, draw: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> Result:
    monkeypatch.setattr(context.model, "generate_image_ids", draw)
    return run(measure, context)


def test_fid_of_pictures_as_good_as_the_tokenizer_is_its_ceiling(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, measures = setting
    measure, vq = measures["fid"], context.vq
    assert isinstance(measure, Fid)
    assert vq is not None
    known = {}
    for drawing_ in measure.drawings.values():
        assert drawing_.image is not None
        pixels = to_tensor(centre_crop(read_image(drawing_.image), vq.image_size))
        ids = encode_caption(context.tokenizer, drawing_.caption, context.model.config.caption_length)
        known[tuple(ids)] = vq.encode(pixels[None])[0]
    result = drawing(
        measure, context, lambda ids, **_: torch.stack([known[tuple(row)] for row in ids.tolist()]), monkeypatch
    )
    assert result.metrics["fd_4"] == pytest.approx(result.metrics["rfd_4"], abs=1e-9)
    assert result.metrics["fd_4"] < result.baselines["fd_4"]


def test_fid_of_random_codes_is_the_baseline(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    context, measures = setting
    assert context.vq is not None
    size = context.vq.codebook_size
    result = drawing(measures["fid"], context, lambda _, uniforms_BI, **__: (uniforms_BI * size).long(), monkeypatch)
    assert result.metrics["fd_4"] == pytest.approx(result.baselines["fd_4"], abs=1e-9)
