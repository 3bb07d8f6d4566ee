"""The validation loss beside a training: it changes nothing in it, and the best checkpoint may follow it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from callbacks.tracking import read_metrics
from modules.files import step_folders
from pipelines import evaluate, train
from pipelines.prepare import __main__ as prepare
from pipelines.report import __main__ as report
from tests.verbs import call

from .running import NO_EVALUATION, ROOT, UNIFIED, assert_same_weights, losses, weights

STEPS = 6


@pytest.fixture(scope="module")
def data(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name shards with a share kept apart."""
    folder = Path(small[0].split("=")[1])
    out, scenes = tmp_path_factory.mktemp("split"), folder / "scenes"
    talks = [f"annotations={scenes}/llava/instruct.json", f"images={scenes}", f"out={out}/mmu"]
    captions = [f"captions={scenes}/annotations/captions_train2014.json", f"images={scenes}/train2014"]
    more = ["processes=1", "val_share=0.2"]
    assert call(prepare, "llava", *talks, *more) == 0
    assert call(prepare, "coco", *captions, f"vq={folder}/vq.safetensors", f"out={out}/t2i", *more) == 0
    return [f"data.{task}={out}/{task}/manifest.json" for task in ("mmu", "t2i")] + [
        f"data.val.{task}={out}/{task}/val/manifest.json" for task in ("mmu", "t2i")
    ]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads afterwards as before: a run sets them for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_it_is_logged_and_followed_and_leaves_no_trace(
    small: list[str], data: list[str], tmp_path: Path, one_thread: None
) -> None:
    length = [f"trainer.max_steps={STEPS}", "checkpoint.every_n_steps=2", "checkpoint.keep_last=1"]
    best = ["checkpoint.best=eval/val/loss_t2i", "checkpoint.best_is=lowest"]
    val = ["evaluation.val.every_n_steps=2", "evaluation.at_start=true"]
    common = [*small, *NO_EVALUATION, *length, "hardware.threads=1"]
    assert call(train, ROOT / UNIFIED, *common, *data, *best, *val, f"run.dir={tmp_path}/with") == 0
    assert call(train, ROOT / UNIFIED, *common, *data[:2], f"run.dir={tmp_path}/without") == 0
    assert losses(tmp_path / "with")[1:] == losses(tmp_path / "without")  # but for step 0, which only the first has
    assert_same_weights(weights(tmp_path / "with"), weights(tmp_path / "without"))

    key = "eval/val/loss_t2i"
    rows = {row["step"]: row[key] for row in read_metrics(tmp_path / "with") if key in row}
    assert list(rows) == [0, 2, 4, 6]
    lowest = min((2, 4), key=rows.__getitem__)  # the last is kept anyway
    kept = [folder.name for folder in step_folders(tmp_path / "with/checkpoints")]
    assert kept == [f"step-{lowest:09d}", "step-000000006"]

    logged = json.loads((tmp_path / "with/records/step-000000006/results.json").read_text())["val"]
    assert logged["metrics"]["loss_t2i"] == rows[6]
    assert call(evaluate, tmp_path / "with", "--measures", "val", "--fresh") == 0
    again = json.loads((tmp_path / "with/records/step-000000006/results.json").read_text())["val"]
    assert again["metrics"] == pytest.approx(logged["metrics"], rel=1e-5)  # this process has other threads
    assert call(report, tmp_path / "with", "--out", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert page.index('id="losses"') < page.index("<code>eval/val/loss_mmu</code>") < page.index('id="evaluation"')
