import json
import logging
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.measures.fid import Fid, FidConfig
from callbacks.measures.measure import EvaluationContext
from callbacks.measures.pictures import SamplingConfig, draw, uniforms
from callbacks.measures.running import run_measure
from callbacks.measures.samples import Samples, SamplesConfig
from datamodules.images import centre_crop, read_image, to_tensor
from modules.metrics.fid import frechet, pool_features

Make = Callable[..., EvaluationContext]


def fid(benchmark: Path, **changes: object) -> Fid:
    values = {"captions": str(benchmark / "captions.json"), "images": str(benchmark / "images"), "n": 5}
    return Fid(FidConfig(**(values | changes)))  # type: ignore[arg-type]


def test_uniforms_depend_on_seed_and_index_alone() -> None:
    first = uniforms(0, 3, 16)
    torch.manual_seed(5)
    assert torch.equal(uniforms(0, 3, 16), first)
    assert not torch.equal(uniforms(1, 3, 16), first)
    assert not torch.equal(uniforms(0, 4, 16), first)
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() < 1


def test_pictures_are_the_same_in_any_batch_and_on_any_number_of_ranks(
    benchmark: Path, make_context: Make, tmp_path: Path
) -> None:
    found = []
    for batch_size, world_size in ((1, 1), (4, 1), (2, 3)):
        measure = fid(benchmark, n=4)
        for rank in range(world_size):
            context = make_context(
                folder=tmp_path / f"{batch_size}", batch_size=batch_size, rank=rank, world_size=world_size
            )
            with torch.no_grad():
                measure.generate(context)
        found.append(measure.records(context))
    assert found[0] == found[1] == found[2]
    assert len({tuple(record["codes"]) for record in found[0]}) == 4


def test_sampling_settings_reach_the_model(make_context: Make) -> None:
    context = make_context()
    with torch.no_grad():
        greedy = draw(context, ["a red thing"] * 2, [0, 1], SamplingConfig(top_k=1))
        free = draw(context, ["a red thing"] * 2, [0, 1], SamplingConfig(temperature=5.0))
    assert torch.equal(greedy[0], greedy[1])
    assert not torch.equal(free[0], free[1])


def test_distance_is_that_of_features_computed_directly(
    benchmark: Path, make_context: Make, caplog: pytest.LogCaptureFixture
) -> None:
    context, measure = make_context(batch_size=2), fid(benchmark)
    with caplog.at_level(logging.WARNING):
        result = run_measure(measure, context)
    assert "fd_pool: 5 pictures for features of width 80" in caplog.text
    assert result is not None
    assert context.vq is not None

    def moments(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        features = pool_features(images).numpy()
        return features.mean(axis=0), np.cov(features.T)

    everything = [to_tensor(centre_crop(read_image(benchmark / f"images/{i}.jpg"), 16)) for i in range(6)]
    reference = moments(torch.stack(everything))
    records = measure.records(context)
    generated = context.vq.decode(torch.tensor([record["codes"] for record in records]))
    real = torch.stack([everything[int(record["image"][0])] for record in records])
    reconstructed = context.vq.decode(context.vq.encode(real))
    assert set(result.metrics) == {"fd_5", "rfd_5", "kd_5", "kd_5/std", "precision_5", "recall_5"}
    assert result.metrics["fd_5"] == pytest.approx(frechet(*moments(generated), *reference), abs=1e-6)
    assert result.metrics["rfd_5"] == pytest.approx(frechet(*moments(reconstructed), *reference), abs=1e-6)
    assert result.baselines["fd_5"] > 0
    assert result.protocol["n_reference"] == 6
    assert result.protocol["vq"] == context.vq.fingerprint


def test_pictures_as_good_as_the_tokenizer_reach_the_ceiling(benchmark: Path, make_context: Make) -> None:
    context, measure = make_context(), fid(benchmark)
    measure.generate(context)
    assert context.vq is not None
    oracle = []
    for record in measure.records(context):
        image = to_tensor(centre_crop(read_image(benchmark / "images" / record["image"]), 16))
        oracle.append(record | {"codes": context.vq.encode(image[None])[0].tolist()})
    metrics = measure.assess(context, oracle).metrics
    assert metrics["fd_5"] == pytest.approx(metrics["rfd_5"], abs=1e-9)


def test_reference_can_be_a_part(benchmark: Path, make_context: Make) -> None:
    result = run_measure(fid(benchmark, n_reference=4), make_context())
    assert result is not None
    assert result.protocol["n_reference"] == 4


def test_cut_captions_are_counted(benchmark: Path, make_context: Make, tmp_path: Path) -> None:
    document = json.loads((benchmark / "captions.json").read_text())
    for annotation in document["annotations"]:
        if annotation["image_id"] < 2:
            annotation["caption"] = "thing " * 40
    (tmp_path / "long.json").write_text(json.dumps(document))
    result = run_measure(fid(benchmark, captions=str(tmp_path / "long.json"), n=6), make_context())
    assert result is not None
    assert result.protocol["captions_cut"] == 2


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([0] * 15, r"codes of record 000000 of fd_pool: is \[0, .* expected at least 16 of them, not 15"),
        ([0] * 15 + [16], r"codes of record 000000 of fd_pool: \[15\] is 16, expected less than 16"),
        ([-1] * 16, r"codes of record 000000 of fd_pool: \[0\] is -1, expected at least 0"),
        (["0"] * 16, r"codes of record 000000 of fd_pool: \[0\] is '0', expected a whole number"),
        ("0" * 16, r"line 1 of .*rank0\.jsonl is damaged \(row: codes is '0+', expected a list\)"),
    ],
)
def test_codes_that_no_tokenizer_decodes_are_refused(
    codes: object, message: str, benchmark: Path, make_context: Make
) -> None:
    context, measure = make_context(), fid(benchmark, n=2)
    with torch.no_grad():
        measure.generate(context)
    path = context.records / "fd_pool" / "rank0.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in (records[0] | {"codes": codes}, records[1])))
    with pytest.raises(ValueError, match=message):
        run_measure(measure, context, generate=False)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"top_k": 1}, "top_k=1"),
        ({"temperature": 0.01}, "temperature=0.01"),
        ({"temperature": 1e-9, "top_k": 50}, "temperature=1e-09"),
        ({"top_p": 1e-4}, "top_p=0.0001"),
        ({"temperature": 0.7, "top_k": 2, "top_p": 0.5}, ""),
        ({}, ""),
    ],
)
def test_greedy_pictures_are_warned_about_with_the_way_out(
    setting: dict[str, float], named: str, benchmark: Path, make_context: Make, caplog: pytest.LogCaptureFixture
) -> None:
    for rank in (0, 1):
        fid(benchmark, **setting).check(make_context(rank=rank, world_size=2))
    told = [message for message in caplog.messages if "greedy" in message]
    assert len(told) == bool(named)
    for message in told:
        assert f"fd_pool: {named} is greedy" in message
        assert message.endswith("Set top_k=0, temperature=1.0 and top_p=1.0")


def test_the_n_of_recall_is_that_of_the_real_pictures_and_few_pictures_have_keys_of_their_own(
    benchmark: Path, make_context: Make
) -> None:
    context, measure = make_context(), fid(benchmark)
    measure.mini = True
    logged = Mock()
    result = run_measure(measure, context, publish=lambda _, records: measure.publish(context, records, logged))
    assert result is not None
    assert {name: result.n(name) for name in result.metrics} == {
        "fd_5": 5,
        "rfd_5": 5,
        "kd_5": 5,
        "kd_5/std": 5,
        "precision_5": 5,
        "recall_5": 6,
    }
    assert logged.log_images.call_args.args[1] == "eval_mini/fd_pool/pictures"


def test_samples_write_a_png_for_every_prompt(make_context: Make) -> None:
    context = make_context()
    measure = Samples(SamplesConfig(prompts=("a red thing", "a blue thing")))
    measure.check(context)
    run_measure(measure, context)
    folder = context.folder / "samples" / "step-000000020"
    assert sorted(path.name for path in folder.iterdir()) == ["000.png", "001.png", "captions.json"]
    assert json.loads((folder / "captions.json").read_text()) == {"000": "a red thing", "001": "a blue thing"}
    record = measure.records(context)[1]
    assert context.vq is not None
    expected = context.vq.decode(torch.tensor([record["codes"]]))[0]
    with Image.open(folder / "001.png") as picture:
        assert torch.equal(to_tensor(picture), expected)


def test_samples_of_a_captions_file_are_published(benchmark: Path, make_context: Make) -> None:
    context = make_context()
    config = SamplesConfig(captions=str(benchmark / "captions.json"), images=str(benchmark / "images"), n=3)
    measure, logged = Samples(config), []

    class Log:
        def log_images(self, *given: object) -> None:
            logged.append(given)

    run_measure(measure, context, publish=lambda _, records: measure.publish(context, records, Log()))  # type: ignore[arg-type]
    [(step, key, pictures, captions)] = logged
    assert (step, key, len(pictures), len(captions)) == (20, "eval/samples", 3, 3)
    assert captions[0].endswith("thing")


def test_check_refuses_what_would_fail_later(make_context: Make, benchmark: Path) -> None:
    with pytest.raises(ValueError, match=r"model.vq is empty, so no picture can be decoded"):
        fid(benchmark).check(make_context(vq=None))
    with pytest.raises(ValueError, match=r"has \d+ ids but model.caption_length=12; shorten it by \d+ ids"):
        Samples(SamplesConfig(prompts=("thing " * 30,))).check(make_context())
    with pytest.raises(ValueError, match="7 pictures asked for"):
        fid(benchmark, n=7).check(make_context())
    with pytest.raises(FileNotFoundError, match="2 of 2 images"):
        fid(benchmark, images=str(benchmark / "nowhere"), n=2).read()


def test_problems() -> None:
    assert SamplingConfig().problems() == []
    assert SamplingConfig(temperature=0, top_k=-1, top_p=0).problems() == [
        "temperature=0 must be above 0; top_k=1 is greedy",
        "top_k=-1 must be 0 (all tokens) or more",
        "top_p=0 must lie in (0, 1]; 1 keeps all tokens",
    ]
    assert FidConfig(captions="c", images="i", n=1, n_reference=1).problems() == [
        "n=1 must be at least 2: one picture has no covariance",
        "n_reference=1 must be 0 (all pictures) or at least 2",
    ]
    assert SamplesConfig(prompts=("x",)).problems() == []
    assert SamplesConfig().problems() == SamplesConfig(prompts=("x",), captions="c", images="i").problems()
    assert SamplesConfig(captions="c", n=0).problems() == [
        "images is empty; name the folder of the pictures that the captions file lists",
        "n=0 must be at least 1",
    ]
