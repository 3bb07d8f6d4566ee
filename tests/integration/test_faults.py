"""Training through its real entry point while processes die, files are damaged and the disk is full."""

import json
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from callbacks.tracking import read_metrics
from modules.checkpoints import STATE, checkpoint_id, find_checkpoint, latest_valid, problem, read_state
from modules.files import step_name
from tests.disks import mounted

from .running import (
    ENVIRONMENT,
    NO_EVALUATION,
    ROOT,
    UNIFIED,
    Train,
    assert_same_weights,
    command,
    keys_of_steps,
    kill_when,
    losses,
    weights,
)

STEPS = 60
TWO = [
    *(f"trainer.max_steps={STEPS}", "checkpoint.every_n_steps=2", "hardware.devices=2"),
    "data.micro_batch={mmu: 1, t2i: 6}",  # short steps; two processes drop out different units
]
EVALUATED = ["evaluation.gqa=null", "evaluation.fid=null", "evaluation.samples=null", "evaluation.pope.limit=2"]
FORMAT_1 = Path(__file__).parents[1] / "unit" / "reference" / "checkpoint_format_1" / step_name(2)


def run(words: list[str], code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def assert_same_run(folder: Path, whole: Path) -> None:
    """The same losses, gradient norms and rates, the same samples and the same weights to the bit."""
    assert losses(folder) == losses(whole)
    assert keys_of_steps(folder) == keys_of_steps(whole)
    assert_same_weights(weights(folder), weights(whole))


@pytest.fixture(scope="module")
def whole(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two processes, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(command(UNIFIED, *small, *EVALUATED, *TWO, "checkpoint.keep_last=99", f"run.dir={folder}"))
    return folder


def metrics_at_the_end(folder: Path) -> dict[str, float]:
    results = json.loads((folder / "records" / step_name(STEPS) / "results.json").read_text())
    found: dict[str, float] = results["pope_style"]["metrics"]
    return found


def saves(folder: Path) -> set[tuple[str, int]]:
    """The temporary folders of saves, under way or cut short."""
    found = set()
    for path in (folder / "checkpoints").glob(".step-*.tmp"):
        try:
            found.add((path.name, path.stat().st_ctime_ns))
        except FileNotFoundError:  # it has just been committed
            continue
    return found


def saved(folder: Path) -> int:
    """The step of the newest whole checkpoint, 0 if there is none."""
    newest = latest_valid(folder / "checkpoints", lambda _: None)
    return int(newest.name.removeprefix("step-")) if newest else 0


def resumed(folder: Path) -> list[str | None]:
    """What each attempt went on from."""
    path = folder / "provenance.json"
    return [attempt["resumed"] for attempt in json.loads(path.read_text())["attempts"]] if path.is_file() else []


def kill_at(moment: str, words: list[str], folder: Path, rng: random.Random) -> bool:
    """Kill both processes while they load, within a save, or between; whether a save was cut short."""
    old = saves(folder)
    if moment == "save":
        kill_when(lambda: bool(saves(folder) - old), words, pause=rng.choice([0.0, rng.uniform(0, 0.02)]))
    elif moment == "load":
        kill_when(lambda: True, words, pause=rng.uniform(0, 5))
    else:
        step, attempt = saved(folder) + rng.randint(3, 6), len(resumed(folder)) + 1
        kill_when(
            lambda: any(row["step"] >= step and row["attempt"] == attempt for row in read_metrics(folder)),
            words,
            pause=rng.uniform(0, 0.1),
        )
    return bool(saves(folder) - old)


def truncate(checkpoint: Path, rng: random.Random) -> None:
    os.truncate(checkpoint / STATE, rng.randrange((checkpoint / STATE).stat().st_size))


def flip(checkpoint: Path, rng: random.Random) -> None:
    content = bytearray((checkpoint / STATE).read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (checkpoint / STATE).write_bytes(content)


def delete(checkpoint: Path, rng: random.Random) -> None:
    (checkpoint / rng.choice([STATE, "manifest.json"])).unlink()


DAMAGE: list[Callable[[Path, random.Random], None]] = [truncate, flip, delete]


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_two_processes_killed_at_random_moments_end_as_if_nothing_had_happened(
    whole: Path, small: list[str], tmp_path: Path, kills: int
) -> None:
    """Saved between steps and in the background by turns; now and then the newest checkpoint is damaged too."""
    rng, folder = random.Random(kills), tmp_path / "run"
    moments = ["step", "save", "load", "step"] * (kills // 4)
    cut_short = 0
    while moments:
        words = [
            *TWO,
            "checkpoint.keep_last=99",
            f"checkpoint.background={str(rng.random() < 0.5).lower()}",
            f"run.dir={folder}",
        ]
        before, attempts = saved(folder), len(resumed(folder))
        moment = moments.pop(0)
        cut_short += kill_at(moment, command(UNIFIED, *small, *NO_EVALUATION, *words), folder, rng)
        assert not (folder / "COMPLETE").exists()
        assert saved(folder) >= before
        assert resumed(folder)[attempts:] in ([], [step_name(before) if before else None])
        whole_ones = [path for path in sorted((folder / "checkpoints").glob("step-*")) if problem(path) is None]
        while len(whole_ones) > 1 and (rng.random() < 0.3 or saved(folder) > STEPS // 2):
            rng.choice(DAMAGE)(whole_ones.pop(), rng)
            assert saved(folder) == int(whole_ones[-1].name.removeprefix("step-"))
        if not moments and not cut_short:
            moments.append("save")  # the machine was too slow to hit one
    before = saved(folder)
    run(command(UNIFIED, *small, *EVALUATED, *TWO, f"run.dir={folder}"))
    assert resumed(folder)[-1] == step_name(before) != step_name(0)
    assert_same_run(folder, whole)
    assert metrics_at_the_end(folder) == metrics_at_the_end(whole)
    assert list((folder / "checkpoints").glob(".*")) == []


def stopped(whole: Path, folder: Path, *steps: int) -> Path:
    """The run ``whole`` as it lay there after the last of ``steps``, with these checkpoints."""
    for step in steps:
        shutil.copytree(whole / "checkpoints" / step_name(step), folder / "checkpoints" / step_name(step))
    for name in ("config.yaml", "provenance.json"):
        shutil.copy(whole / name, folder)
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = (whole / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(row for row in rows if json.loads(row)["step"] <= max(steps)))
    return folder


@pytest.mark.parametrize("damage", DAMAGE, ids=[damage.__name__ for damage in DAMAGE])
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    whole: Path, train: Train, tmp_path: Path, damage: Callable[[Path, random.Random], None]
) -> None:
    folder = stopped(whole, tmp_path / "run", STEPS - 6, STEPS - 4)
    damage(folder / "checkpoints" / step_name(STEPS - 4), random.Random(0))
    done = train(UNIFIED, folder, *TWO)
    assert f"WARNING: checkpoint {folder / 'checkpoints' / step_name(STEPS - 4)} is skipped: " in done.stderr
    assert f"resuming from {folder / 'checkpoints' / step_name(STEPS - 6)}" in done.stdout
    assert_same_run(folder, whole)


@pytest.fixture
def disk(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one checkpoint and half of another."""
    size = (whole / "checkpoints" / step_name(STEPS) / STATE).stat().st_size * 3 // 2 + 2**20
    with mounted(tmp_path / "disk", size) as place:
        yield place


def test_training_goes_on_beside_a_full_disk_and_needs_room_at_its_end(whole: Path, train: Train, disk: Path) -> None:
    start, folder = STEPS - 6, disk / "run"
    stopped(whole, folder, start)
    more = [*TWO, "checkpoint.keep_last=1", "checkpoint.max_errors=9"]
    done = train(UNIFIED, folder, *more, code=2)
    for step in (STEPS - 4, STEPS - 2, STEPS):
        assert f"CHECKPOINT NOT SAVED: checkpoint {folder / 'checkpoints' / step_name(step)} was not" in done.stderr
    assert "Make room there, or keep fewer (checkpoint.keep_last). Earlier checkpoints are unchanged" in done.stderr
    assert "The run cannot end without it; start the same command again" in done.stderr
    assert read_metrics(folder)[-1]["step"] == STEPS
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [step_name(start)]
    assert find_checkpoint(folder, pytest.fail).name == step_name(start)
    assert not (folder / "COMPLETE").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    train(UNIFIED, folder, *more)
    assert_same_run(folder, whole)


def test_a_write_that_fails_ends_all_processes_where_the_user_says_so(
    whole: Path, small: list[str], train: Train, tmp_path: Path
) -> None:
    """The system lets no file grow beyond a tenth of a checkpoint."""
    folder = stopped(whole, tmp_path / "run", STEPS - 6)
    limit = (folder / "checkpoints" / step_name(STEPS - 6) / STATE).stat().st_size // 10
    words = command(UNIFIED, *small, *NO_EVALUATION, *TWO, "checkpoint.on_error=stop", f"run.dir={folder}")
    done = subprocess.run(
        words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    place = folder / "checkpoints" / step_name(STEPS - 4)
    assert f"error: checkpoint {place} could not be written: File too large. Earlier checkpoints are" in done.stderr
    assert "Training stops, as checkpoint.on_error=stop says" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [step_name(STEPS - 6)]
    train(UNIFIED, folder, *TWO)
    assert_same_run(folder, whole)


def test_a_complete_run_is_trained_further_where_that_is_allowed(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train("configs/smoke_t2i.yaml", folder, "trainer.max_steps=2")
    done = train("configs/smoke_t2i.yaml", folder, "trainer.max_steps=4", code=2)
    assert "trainer.max_steps: 2 there, 4 now" in done.stderr
    assert (folder / "COMPLETE").read_text() == "2\n"
    done = train("configs/smoke_t2i.yaml", folder, "trainer.max_steps=4", "run.allow_changed=[trainer.max_steps]")
    said = f"WARNING: {folder} was complete at step 2 and is trained further, to trainer.max_steps=4"
    assert done.stderr.count(said) == 1
    assert (folder / "COMPLETE").read_text() == "4\n"
    assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3, 4]
    assert [row["attempt"] for row in read_metrics(folder)] == [1, 1, 2, 2]
    assert find_checkpoint(folder, pytest.fail).name == step_name(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.adapters.rank=2", "error: the checkpoint does not fit the model: model.backbone.layers.0"),
        ("stage.freeze=[projector.*]", "error: the checkpoint's optimizer trains other parameters than this run: pro"),
    ],
)
def test_an_allowed_change_that_does_not_fit_is_a_message(
    whole: Path, train: Train, tmp_path: Path, change: str, message: str
) -> None:
    folder = stopped(whole, tmp_path / "run", STEPS - 6)
    one = [word for word in TWO if not word.startswith("hardware")]
    done = train(UNIFIED, folder, *one, change, "run.allow_changed=[model,stage]", code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_of_format_1_goes_on(tmp_path: Path) -> None:
    """Of what it was written with only the numbers are kept, so data are made anew."""
    folder = tmp_path / "run"
    shutil.copytree(FORMAT_1, folder / "checkpoints" / FORMAT_1.name)
    text = json.dumps(read_state(FORMAT_1)["run"]["config"]).replace("data/format_1", str(tmp_path / "scenes"))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(json.loads(text))))
    words = ["trainer.max_steps=4", "run.allow_changed=[trainer.max_steps]", "data.accept_changed=true"]
    done = run(command(folder / "config.yaml", f"run.dir={folder}", *words))
    assert f"resuming from {folder / 'checkpoints' / step_name(2)}" in done.stdout
    assert [row["step"] for row in read_metrics(folder)] == [3, 4]
    assert (folder / "COMPLETE").read_text() == "4\n"


def test_what_is_evaluated_behind_a_background_save_names_its_checkpoint(
    small: list[str], train: Train, tmp_path: Path
) -> None:
    """And its losses and weights are those of a run that waits for its saves and evaluates nothing."""
    mmu, length = "configs/smoke_mmu.yaml", ["trainer.max_steps=6", "checkpoint.every_n_steps=2"]
    saving = ["checkpoint.background=true", "checkpoint.keep_last=9", "evaluation.every_n_steps=2"]
    evaluation = ["evaluation.gqa=null", "evaluation.pope.limit=2"]
    folder = tmp_path / "background"
    run(command(mmu, *small, *length, *saving, *evaluation, f"run.dir={folder}"))
    for step in (2, 4, 6):
        results = json.loads((folder / "records" / step_name(step) / "results.json").read_text())
        assert results["pope_style"]["protocol"]["checkpoint"] == checkpoint_id(
            folder / "checkpoints" / step_name(step)
        )
    train(mmu, tmp_path / "plain", *length)
    assert_same_run(folder, tmp_path / "plain")
