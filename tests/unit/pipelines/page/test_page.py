"""What the page says of a run, and where it is served; tests/integration/test_page.py uses it in a browser."""

import errno
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio
import pytest
from PIL import Image

from callbacks.measures.records import write_result
from datamodules.images import decode
from modules.files import step_name
from modules.stages import StageConfig
from pipelines.page import __main__ as page
from pipelines.page.examples import Examples, examples_of
from pipelines.page.layout import build
from pipelines.page.server import open_socket
from pipelines.run.scores import scores_of
from pipelines.run.trained import Trained, load_trained
from tests.verbs import call


@pytest.fixture
def run(run_folder: Path) -> Trained:
    return load_trained(run_folder)


def texts(blocks: gradio.Blocks) -> str:
    """All texts of the page, and the values of its fields."""
    found: list[Any] = [block.value for block in blocks.blocks.values() if hasattr(block, "value")]
    return "\n".join(map(str, found))


def test_examples_come_from_the_data_it_was_trained_on(run: Trained, tmp_path: Path) -> None:
    found = examples_of(run.config, tmp_path)
    data = run.config.data
    mmu, t2i = (
        sum(shard["n"] for shard in json.loads(Path(each).read_text())["shards"]) for each in (data.mmu, data.t2i)
    )
    assert found.remarks == [
        f"Answering questions: learnt from {mmu} samples of {data.mmu}.",
        f"Drawing captions: learnt from {t2i} samples of {data.t2i}.",
    ]
    assert len(set(found.captions)) == 6
    assert len(found.questions) == 4
    for path, question in found.questions:
        assert question.strip()
        assert "\nAnswer the question using" not in question  # the page's own box adds it
        assert decode(path.read_bytes()).size == (64, 64)
        assert path.parent == tmp_path


def test_data_elsewhere_is_said_and_captions_come_from_the_runs_samples(
    run: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = replace(run.config.data, mmu="s3://bucket/mmu.json", t2i=str(tmp_path / "gone.json"))
    folder = run.folder / "samples" / step_name(20)
    folder.mkdir(parents=True)
    (folder / "captions.json").write_text('{"000": "a red circle", "001": "two squares"}')
    found = examples_of(replace(run.config, data=data), tmp_path)
    assert found.remarks == [
        "Answering questions: learnt from s3://bucket/mmu.json, not on this machine.",
        f"Drawing captions: learnt from {tmp_path / 'gone.json'}, not on this machine.",
    ]
    (tmp_path / "gone.json").write_text("{}")
    assert examples_of(replace(run.config, data=data), tmp_path).remarks[1] == (
        f"Drawing captions: learnt from {tmp_path / 'gone.json'}, which cannot be read here."
    )
    assert (found.captions, found.questions) == (["a red circle", "two squares"], [])
    assert "no examples of drawing captions" in caplog.text


def test_it_shows_run_step_and_scores(run: Trained, tmp_path: Path) -> None:
    assert scores_of(run.folder, run.step) == []
    metrics = {"f1_macro": 0.7512, "random/f1": 0.5, "bias": -0.0001}
    result = {
        "metrics": metrics,
        "standard_errors": {"f1_macro": 0.0123},
        "baselines": {"f1_macro": 0.667},
        "counts": {"bias": 300},
        "protocol": {"n": 900},
    }
    write_result(run.folder / "records" / step_name(run.step), "pope_style", result)
    scores = scores_of(run.folder, run.step)
    assert scores == [
        ["pope_style", "f1_macro", "0.751", "0.012", "0.667", "900"],
        ["pope_style", "bias", "0.000", "–", "–", "300"],
    ]
    shown = texts(build(run, Examples(remarks=["learnt from scenes"]), scores))
    assert f"step {run.step} of stage unified_finetune" in shown
    assert "learnt from scenes" in shown
    assert "| pope_style | f1_macro | 0.751 |" in shown
    assert "does not train" not in shown
    assert f"Nothing was measured at step {run.step}" in texts(build(run, Examples(remarks=[]), []))


def test_a_task_that_was_not_trained_is_pointed_out(run: Trained) -> None:
    only = replace(run, config=replace(run.config, stage=StageConfig(name="mmu_pretrain")), vq=None)
    shown = texts(build(only, Examples(remarks=[]), []))
    assert "Stage mmu_pretrain does not train drawing captions, so this may be useless." in shown
    assert "It cannot draw: model.vq is empty" in shown
    assert "train answering" not in shown


def test_uploads_are_judged_by_their_header(tmp_path: Path) -> None:
    Image.new("1", (400, 300)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    assert decode(whole, most_pixels=120_000).size == (400, 300)
    header = whole[: whole.index(b"IDAT") + 4]
    with pytest.raises(ValueError, match=r"it has 120,000 pixels, more than 119,999; scale it down"):
        decode(header, most_pixels=119_999)
    with pytest.raises(ValueError, match=r"^(?!it has)"):
        decode(header, most_pixels=120_000)


def test_addresses_that_cannot_be_served_are_said() -> None:
    with pytest.raises(ValueError, match=r"--port 65536 must lie in \[0, 65535\]"):
        open_socket("127.0.0.1", 65536)
    with pytest.raises(ValueError, match=r"--host 192\.0\.2\.1 is no address of this machine"):
        open_socket("192.0.2.1", 0)
    with pytest.raises(ValueError, match=r"--host 1\.2\.3\.4\.5 is no address"):
        open_socket("1.2.3.4.5", 0)
    with open_socket("127.0.0.1", 0) as listening, pytest.raises(ValueError, match="is in use; name another"):
        open_socket("127.0.0.1", listening.getsockname()[1])


def test_a_port_of_the_system_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ValueError, match="port 80 is for the system; name one above 1023"):
        open_socket("127.0.0.1", 80)


def test_without_gradio_the_way_out_is_said(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert call(page, run_folder) == 2
    assert "the page needs gradio, which is not installed: pip install '.[page]'" in capsys.readouterr().err
