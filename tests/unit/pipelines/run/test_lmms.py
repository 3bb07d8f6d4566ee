"""lmms-eval's own registry and requests reach a run, and get the answers that the run gives."""

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

if not os.environ.get("REQUIRE_LMMS_EVAL"):
    pytest.importorskip("lmms_eval", reason="needs lmms-eval: pip install --no-deps lmms_eval loguru")

from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2

from pipelines.run.lmms import OmniMambaForLmmsEval
from pipelines.run.trained import load_trained

PICTURES = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
QUESTIONS = ["What is it?", "<image>\nIs there a red circle in the image?", "What is it?"]


def request(number: int, **options: Any) -> Instance:
    arguments = (QUESTIONS[number], {"max_new_tokens": 4, **options}, lambda doc: [doc], number, "shapes", "test")
    return Instance("generate_until", arguments, 0, {"task": "shapes", "doc_id": number, "repeats": 1})


@pytest.fixture
def model(run_folder: Path) -> OmniMambaForLmmsEval:
    found = OmniMambaForLmmsEval.create_from_arg_string(f"run={run_folder}", {"batch_size": 2, "device": "cpu"})
    found.task_dict = {"shapes": {"test": PICTURES}}
    return found


def test_the_entry_point_leads_to_the_class() -> None:
    assert [point.value for point in entry_points(group="lmms_eval.models", name="omnimamba")] == [
        "pipelines.run.lmms:manifest"
    ]
    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    assert registry.resolve("omnimamba").class_path == "pipelines.run.lmms.OmniMambaForLmmsEval"


def test_answers_are_those_of_the_run_in_the_order_of_the_requests(
    model: OmniMambaForLmmsEval, run_folder: Path
) -> None:
    run = load_trained(run_folder)
    plain = [text.replace("<image>", "") for text in QUESTIONS]
    expected = [run.answer(p, q, max_new_tokens=4).strip() for p, q in zip(PICTURES, plain, strict=True)]
    assert any(expected)
    assert model.generate_until([request(2), request(1), request(0)]) == expected[::-1]


def test_answers_end_before_a_stop_text(model: OmniMambaForLmmsEval) -> None:
    (whole,) = model.generate_until([request(1, max_new_tokens=8)])
    assert len(whole) > 2
    (cut,) = model.generate_until([request(1, max_new_tokens=8, until=[whole[2:4]])])
    assert cut == whole[: whole.index(whole[2:4])].strip()


def test_what_it_cannot_do_is_said(model: OmniMambaForLmmsEval, caplog: pytest.LogCaptureFixture) -> None:
    model.generate_until([request(0, temperature=0.7), request(1, temperature=0.7)])
    assert "shapes asks for sampling; this adapter answers greedily" in caplog.text
    none = request(0)
    none.arguments = (QUESTIONS[0], {}, lambda doc: [], 0, "shapes", "test")
    with pytest.raises(ValueError, match="sample 0 of shapes has 0 pictures; this model takes one"):
        model.generate_until([none])
    long = request(0)
    long.arguments = ("circle " * 300, {}, lambda doc: [doc], 0, "shapes", "test")
    with pytest.raises(ValueError, match=r"the question of sample 0 of shapes is \d+ ids too long"):
        model.generate_until([long])
    assert caplog.text.count("asks for sampling") == 1
    assert model.generate_until([request(0, until="")]) == model.generate_until([request(0, until=None)])
    for words, message in (
        ("batch_size=auto", "batch_size=auto must be a whole number"),
        ("device=tpu", "device=tpu"),
    ):
        with pytest.raises(ValueError, match=message):
            OmniMambaForLmmsEval.create_from_arg_string(f"run=nowhere,{words}")
    with pytest.raises(TypeError, match="devcie"):
        OmniMambaForLmmsEval.create_from_arg_string("run=nowhere,devcie=cpu")
    with pytest.raises(NotImplementedError, match="choose a task of the kind generate_until"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="choose a task of one round"):
        model.generate_until_multi_round([])
