"""The few lines of Python that use a trained run."""

import logging
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from callbacks.measures.answers import answer
from datamodules.encode import encode_question
from pipelines import evaluate, export, generate
from pipelines.report import __main__ as report
from pipelines.run.asked import source_of
from pipelines.run.trained import Trained, load_trained
from tests.verbs import call


@pytest.fixture
def run(run_folder: Path) -> Trained:
    return load_trained(run_folder)


def test_the_verbs_draw_and_answer_the_same(
    run: Trained, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "circle.png"
    words = ["text2image", "a red circle", "--seed", 4, "--temperature", 0.7, "--out", out]
    assert call(generate, run_folder, *words) == 0
    first, second = run.draw("a red circle", n=2, seed=4, temperature=0.7)
    assert first.tobytes() == Image.open(out).tobytes()
    assert second.tobytes() != first.tobytes()
    capsys.readouterr()
    assert call(generate, run_folder, "describe", out, "Is there a circle?", "--max-new-tokens", 3, "--short") == 0
    given = [run.answer(image, "Is there a circle?", max_new_tokens=3, short=True) for image in (out, str(out), first)]
    assert len(set(given)) == 1
    assert capsys.readouterr().out.strip() == given[0].strip()


def test_a_picture_depends_on_seed_and_number_alone(run: Trained) -> None:
    one, two, three = run.draw("a red circle", n=3)
    assert [picture.tobytes() for picture in run.draw("a red circle", n=2)] == [one.tobytes(), two.tobytes()]
    assert run.draw("a red circle", seed=1)[0].tobytes() != one.tobytes()
    assert (three.size, three.mode) == ((64, 64), "RGB")


def test_progress_counts_every_token(run: Trained) -> None:
    seen: list[tuple[int, int]] = []
    told = run.draw("a red circle", n=2, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(token, 16) for token in range(1, 17)]
    assert [picture.tobytes() for picture in told] == [p.tobytes() for p in run.draw("a red circle", n=2)]


def test_an_answer_grows_to_the_one_that_a_benchmark_gets(run: Trained) -> None:
    picture = Image.new("RGB", (64, 64), "red")
    texts = list(run.stream(picture, "What is in the image?", max_new_tokens=5))
    assert 1 <= len(texts) <= 5
    assert all(later.startswith(text) for text, later in pairwise(texts))
    prompt = encode_question(run.tokenizer, "What is in the image?", run.config.data.template)
    [(asked_in_a_batch, _, _)] = answer(run.context, [source_of(picture)], [prompt], 5)
    assert texts[-1] == run.answer(picture, "What is in the image?", max_new_tokens=5) == asked_in_a_batch


def test_guidance_without_empty_captions_in_training_is_warned_of(
    run: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run.draw("a red circle", guidance=3.0)
    assert "drawing: guidance=3.0" in caplog.text
    assert "never saw an empty caption" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"caption": " "}, "the caption is empty; say what to draw"),
        ({"caption": "red " * 60}, r"caption 'red .* has \d+ ids but model\.caption_length=24"),
        ({"caption": "red", "n": 0}, "n=0 must be at least 1"),
        ({"caption": "red", "temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"caption": "red", "guidance": -1.0}, "guidance=-1.0 must be 0 or more"),
        ({"caption": "red", "steps": 4}, "unknown sampling setting steps; known are seed, temperature"),
    ],
)
def test_what_cannot_be_drawn_is_said(run: Trained, words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.draw(**words)  # type: ignore[arg-type]


def test_what_cannot_be_answered_is_said(run: Trained, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="the question is empty"):
        run.answer(picture, "  ")
    with pytest.raises(ValueError, match="max_new_tokens=0 must be at least 1"):
        run.answer(picture, "What?", max_new_tokens=0)
    with pytest.raises(ValueError, match=r"text\.jpg"):
        run.answer(tmp_path / "text.jpg", "What?")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        run.answer("missing.png", "What?")


@pytest.mark.parametrize("line", ["tracking.project=a/b", "tracking.group=" + "g" * 129, "name=" + "n" * 150])
def test_what_wandb_refuses_does_not_matter_to_those_who_only_read_a_run(
    run_folder: Path, tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "Offline")
    config = OmegaConf.load(run_folder / "config.yaml")
    key, _, value = line.partition("=")
    OmegaConf.update(config, key, value)
    (run_folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    assert call(generate, run_folder, "text2image", "a red circle", "--out", tmp_path / "a.png") == 0
    assert call(export, run_folder, tmp_path / "out") == 0
    assert call(evaluate, run_folder, "--measures", "pope") == 0
    assert call(report, run_folder, "--out", tmp_path / "report.html") == 0
    assert "does not load" not in (tmp_path / "report.html").read_text()
