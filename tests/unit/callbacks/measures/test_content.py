"""Content, on real embedded scenes and a tokenizer fitted to them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from callbacks.measures.content import Content, ContentConfig
from callbacks.measures.measure import EvaluationContext
from callbacks.measures.pictures import SamplingConfig, draw
from callbacks.measures.running import run_measure
from datamodules.images import read_image, to_tensor
from datamodules.scenes.config import ScenesConfig
from datamodules.scenes.write import write_scenes
from modules.omnimamba.vq import PatchKMeans

Make = Callable[..., EvaluationContext]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, ScenesConfig(images=64, val_images=40, max_objects=2))
    return folder


@pytest.fixture(scope="module")
def scenes_vq(scenes: Path) -> PatchKMeans:
    pictures = torch.stack([to_tensor(read_image(path)) for path in sorted((scenes / "val2014").iterdir())])
    return PatchKMeans.fit(pictures, codebook_size=16, patch_size=16, seed=0)


def content(scenes: Path, **changes: object) -> Content:
    captions, images = scenes / "annotations" / "captions_val2014.json", scenes / "val2014"
    return Content(ContentConfig(**{"captions": str(captions), "images": str(images), "n": 20} | changes))  # type: ignore[arg-type]


def test_perfect_codes_reach_the_tokenizers_own_score(scenes: Path, make_context: Make) -> None:
    pictures = torch.stack([to_tensor(read_image(path)) for path in sorted((scenes / "val2014").iterdir())])
    vq = PatchKMeans.fit(pictures, codebook_size=480, patch_size=8, seed=0)
    context, measure = make_context(vq=vq), content(scenes)
    records = [
        {"sample_id": key, "split": "content", "prompt": drawing.caption, "ids_cut": 0,
         "codes": vq.encode(to_tensor(read_image(drawing.image))[None])[0].tolist()}
        for key, drawing in measure.drawings.items()
        if drawing.image
    ]  # fmt: skip
    result = measure.assess(context, records)
    assert result.metrics["real/content"] >= 0.98
    for key in ("content", "content_all", "color", "shape", "place", "size", "number"):
        assert result.metrics[key] == result.metrics[f"reconstructed/{key}"] >= 0.95
        assert result.baselines[key] < result.metrics[key] or key == "number"
    assert result.metrics["random/content"] < 0.2
    assert result.baselines["content"] < 0.3
    assert result.n("content_all") == 20


def test_it_is_a_measure_like_the_others(scenes: Path, scenes_vq: PatchKMeans, make_context: Make) -> None:
    context, measure = make_context(vq=scenes_vq), content(scenes, n=4)
    tracker = Mock()
    result = run_measure(measure, context, publish=lambda found, records: measure.publish(context, records, tracker))
    assert result is not None
    assert measure.name == "content_scenes"
    assert result.protocol["n"] == 4
    assert set(result.standard_errors) >= {"content", "content_all"}
    assert measure.stored(context) is not None


@pytest.mark.parametrize(("objects", "numbers"), [(1, {1}), (2, {2}), (0, {1, 2})])
def test_captions_can_be_chosen_by_their_number_of_objects(scenes: Path, objects: int, numbers: set[int]) -> None:
    measure = content(scenes, n=12, objects=objects)
    assert {2 if (" and " in d.caption or " of " in d.caption or "above" in d.caption or "below" in d.caption) else 1
            for d in measure.drawings.values()} == numbers  # fmt: skip


def test_more_captions_than_there_are_is_an_error(scenes: Path) -> None:
    with pytest.raises(ValueError, match=r"12 pictures asked for, but .* has captions of 0; lower n"):
        content(scenes, n=12, objects=3).sample_ids()


def test_pictures_of_another_size_are_refused(scenes: Path, make_context: Make) -> None:
    with pytest.raises(
        ValueError, match=r"makes pictures of 16 px, and scenes have 64 px; leave evaluation\.content out"
    ):
        content(scenes).check(make_context())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"n": 1}, "n=1 must be at least 2"), ({"objects": -1}, "objects=-1 must be 0"),
     ({"guidance": -1.0}, "guidance=-1.0 must be 0 or more"), ({"guidance": float("inf")}, "guidance=inf")],
)  # fmt: skip
def test_broken_rules(change: dict[str, object], message: str) -> None:
    config = replace(ContentConfig(captions="c", images="i", n=8), **change)  # type: ignore[arg-type]
    assert any(problem.startswith(message) for problem in config.problems())


def test_guidance_is_part_of_the_protocol_only_where_it_is_used(
    scenes: Path, scenes_vq: PatchKMeans, make_context: Make
) -> None:
    context = make_context(vq=scenes_vq)
    assert "guidance" not in content(scenes).protocol(context)
    assert content(scenes, guidance=3.0).protocol(context)["guidance"] == 3.0


def test_guidance_without_empty_captions_in_training_is_warned_of(
    scenes: Path, scenes_vq: PatchKMeans, make_context: Make, caplog: pytest.LogCaptureFixture
) -> None:
    measure = content(scenes, guidance=3.0)
    with caplog.at_level(logging.WARNING):
        measure.check(make_context(vq=scenes_vq, caption_dropout=0.1))
        content(scenes).check(make_context(vq=scenes_vq))
        assert not caplog.text
        measure.check(make_context(vq=scenes_vq))
    assert "guidance=3.0 compares with pictures of empty captions, but the model never saw an empty" in caplog.text


def test_guided_pictures_do_not_depend_on_their_batch(make_context: Make) -> None:
    context, captions = make_context(), ["red", "a green thing", "blue"]
    many = draw(context, captions, [0, 1, 2], SamplingConfig(guidance=300.0))
    for index, caption in enumerate(captions):
        one = draw(context, [caption], [index], SamplingConfig(guidance=300.0))
        assert torch.equal(one[0], many[index])
    assert not torch.equal(many, draw(context, captions, [0, 1, 2], SamplingConfig()))
