from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.images import read_image, to_tensor
from pipelines import generate
from pipelines.run import trained
from tests.verbs import call


def test_text2image_writes_a_png_and_overwrites_only_when_told(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(generate, run_folder, "text2image", "A red circle!") == 0
    path = run_folder / "samples" / "a-red-circle-seed0.png"
    assert capsys.readouterr().out == f"{path}\n"
    first = to_tensor(read_image(path))
    assert first.shape == (3, 64, 64)
    assert call(generate, run_folder, "text2image", "A red circle!") == 2
    assert f"{path} exists and is not overwritten" in capsys.readouterr().err
    assert call(generate, run_folder, "text2image", "A red circle!", "--force") == 0
    assert torch.equal(to_tensor(read_image(path)), first)


def test_seed_and_sampling_change_the_picture(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pictures = []
    for number, words in enumerate([[], ["--seed", 1], ["--top-k", 1], ["--seed", 1, "--top-k", 1]]):
        out = tmp_path / f"{number}.png"
        assert call(generate, run_folder, "text2image", "a red circle", "--out", out, *words) == 0
        pictures.append(to_tensor(read_image(out)))
    assert not torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[2], pictures[3])  # greedy: the seed does not matter


def test_describe_prints_the_answer(
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    Image.new("RGB", (100, 60), "red").save(tmp_path / "red.png")
    seen = []

    def answer(context: object, image: object, prompt: list[int], limit: int) -> list[tuple[str, int, bool]]:
        seen.append(context.tokenizer.decode(prompt))  # type: ignore[attr-defined]
        return [("a red", 2, True), ("a red thing", 3, limit == 3)]

    monkeypatch.setattr("pipelines.run.trained.stream_answer", answer)
    assert call(generate, run_folder, "describe", tmp_path / "red.png", "What is it?") == 0
    assert capsys.readouterr() == ("a red thing\n", "")
    words = ["describe", tmp_path / "red.png", "What is it?", "--short", "--max-new-tokens", 3]
    assert call(generate, run_folder, *words) == 0
    assert "cut after 3 tokens" in caplog.text
    assert seen == [
        "In: What is it?\nOut:",
        "In: What is it?\nAnswer the question using a single word or phrase.\nOut:",
    ]


def test_describe_with_the_model_itself(run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("L", (100, 60)).save(tmp_path / "grey.png")
    assert call(generate, run_folder, "describe", tmp_path / "grey.png", "What is it?", "--max-new-tokens", 2) == 0


def test_a_run_that_did_not_train_the_task_is_pointed_out(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["text2image", "a red circle", "stage.name=mmu_pretrain"]
    assert call(generate, run_folder, *words) == 0
    assert "is of stage mmu_pretrain, which does not train t2i" in capsys.readouterr().err


def test_errors_come_before_the_model_is_loaded(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(trained, "load_trained", refuse)
    (tmp_path / "text.jpg").write_text("no picture")
    draw = [run_folder, "text2image", "a red circle"]
    for words, message in (
        ([tmp_path / "nowhere", "text2image", "a red circle"], "nowhere does not exist. Name one that"),
        ([tmp_path, "text2image", "a red circle"], "is not a run folder: it has no config.yaml"),
        ([run_folder, "text2image", " "], "the caption is empty"),
        ([run_folder, "text2image", "circle " * 40], "but model.caption_length=24; shorten it by"),
        ([*draw, "--temperature", 0], "temperature=0.0 must be above 0"),
        (
            [*draw, "--top-p", 1.5, "--top-k", -1],
            "top_k=-1 must be 0 (all tokens) or more; top_p=1.5 must lie in (0, 1]",
        ),
        ([*draw, "--top-k", "many"], "argument --top-k: invalid int value: 'many'"),
        ([*draw, "--out", tmp_path / "a.jpg"], "must end in .png"),
        ([*draw, "--out", tmp_path / "none" / "a.png"], f"folder {tmp_path / 'none'} does not exist"),
        ([*draw, "another"], f'needs quotes: {run_folder} text2image "a red circle another"'),
        ([run_folder, "text2image", "a", "red", "circle", "seed=3"], 'text2image "a red circle"'),
        ([run_folder, "text2image", "it's", "$5"], """text2image 'it'"'"'s $5'"""),
        ([run_folder, "describe", "a b.jpg", "Is", "it", "red?"], """describe 'a b.jpg' "Is it red?\""""),
        ([*draw, "--sed", "3"], "unrecognized argument: --sed"),
        ([*draw, "nonsense=1"], "nonsense"),
        ([*draw, "model.vq=''"], "model.vq is empty, so no picture can be decoded"),
        ([run_folder, "describe", tmp_path / "none.jpg", "What?"], "none.jpg does not exist"),
        ([run_folder, "describe", tmp_path / "text.jpg", "What?"], "text.jpg does not decode"),
        ([run_folder, "describe", tmp_path / "text.jpg", " "], "the question is empty"),
        ([run_folder, "describe", tmp_path / "text.jpg", "What?", "--max-new-tokens", 0], "must be at least 1"),
        ([run_folder, "paint", "x"], "invalid choice: 'paint'"),
    ):
        assert call(generate, *words) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_an_answer_takes_the_room_that_the_model_has(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 MMU positions, 64 of them for the image: a long question leaves less than the usual answer needs."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    question = "Is there a red circle in the image? " * 9
    assert call(generate, run_folder, "describe", tmp_path / "red.png", question) == 0
    capsys.readouterr()
    assert call(generate, run_folder, "describe", tmp_path / "red.png", question, "--max-new-tokens", 150) == 2
    assert "max_new_tokens=150, but after this prompt the model's 200 MMU positions leave room for" in (
        capsys.readouterr().err
    )
    assert call(generate, run_folder, "describe", tmp_path / "red.png", question * 9) == 2
    assert (
        "leaves no room for an answer in the model's 200 MMU positions; shorten the question" in capsys.readouterr().err
    )
