import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import DataLoader, Dataset

from callbacks.evaluation import EvaluationCallback
from callbacks.measures.content import ContentConfig
from callbacks.measures.fid_config import FidConfig
from callbacks.measures.gqa import GqaConfig
from callbacks.measures.measure import EvaluationContext, Measure, Result
from callbacks.measures.mme import MmeConfig
from callbacks.measures.mmmu import MmmuConfig
from callbacks.measures.pope import PopeConfig
from callbacks.measures.records import Record
from callbacks.measures.registry import KEYS, EvaluationConfig, build_measures, build_mini_measures, build_pairs
from callbacks.measures.samples import SamplesConfig
from callbacks.measures.speed import SpeedConfig
from callbacks.measures.val import ValConfig
from callbacks.measures.vqav2 import VqaV2Config
from callbacks.tracking import Tracker
from modules import signals
from modules.checkpoints import CheckpointError

Make = Callable[..., EvaluationContext]


class Probe(Measure):
    """One sample; notes when it is generated, and disturbs whatever training could notice."""

    task: ClassVar[str] = "probe"
    name = "probe_style"  # type: ignore[assignment]

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.steps = error, list[int]()

    def check(self, context: EvaluationContext) -> None:
        if isinstance(self.error, FileNotFoundError):
            raise self.error

    def sample_ids(self) -> Sequence[str]:
        return ["one"]

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        return {}

    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        if ids:
            self.steps.append(context.step)
        torch.rand(7), random.random(), np.random.rand()
        if self.error is not None:
            raise self.error
        yield [{"sample_id": sample, "split": "all", "prompt": ""} for sample in ids]

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        return Result(metrics={"n": 1.0}, standard_errors={}, baselines={}, protocol=self.traced(context, records))


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[int, Mapping[str, float]]] = []

        self.files: list[tuple[str, str, list[str]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, metrics))

    def log_files(self, name: str, kind: str, folder: Path) -> None:
        self.files.append((name, kind, sorted(path.name for path in folder.iterdir())))


class Noise(Dataset[Tensor]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), index / 100)


class Dropped(pl.LightningModule):
    """Dropout makes the loss depend on the mode and on torch's random state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.net(batch) - 1).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    folder: Path,
    make_context: Make,
    callbacks: Sequence[tuple[Probe, EvaluationConfig]] = (),
    *,
    max_steps: int = 6,
    accumulate: int = 1,
    ckpt_path: Path | None = None,
    extra: Sequence[pl.Callback] = (),
    mini: Probe | None = None,
) -> tuple[Dropped, Log, pl.Trainer]:
    module, log = Dropped(), Log()

    def context(trainer: pl.Trainer, given: pl.LightningModule) -> EvaluationContext:
        assert given is module
        return make_context(step=trainer.global_step, model=module.net, folder=folder)

    watchers = [EvaluationCallback(probe, log, config, context, mini=mini or probe) for probe, config in callbacks]  # type: ignore[arg-type]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        callbacks=[*watchers, *extra],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(Noise(), batch_size=2), ckpt_path=ckpt_path, weights_only=bool(ckpt_path))
    return module, log, trainer


def test_training_is_bit_identical_with_and_without_evaluation(tmp_path: Path, make_context: Make) -> None:
    plain, _, _ = train(tmp_path / "a", make_context)
    probe = Probe()
    watched, log, _ = train(tmp_path / "b", make_context, [(probe, EvaluationConfig(every_n_steps=1, at_start=True))])
    assert probe.steps == [0, 1, 2, 3, 4, 5, 6]
    assert watched.losses == plain.losses
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert log.rows == [(step, {"eval/probe_style/n": 1.0}) for step in range(7)]


def test_a_failed_evaluation_is_logged_and_training_goes_on_as_without(
    tmp_path: Path, make_context: Make, caplog: pytest.LogCaptureFixture
) -> None:
    plain, _, _ = train(tmp_path / "a", make_context)
    probe = Probe(RuntimeError("out of memory"))
    with caplog.at_level(logging.ERROR):
        watched, log, _ = train(tmp_path / "b", make_context, [(probe, EvaluationConfig(every_n_steps=3))])
    assert watched.losses == plain.losses
    assert log.rows == [(3, {"eval/probe_style/error": 1}), (6, {"eval/probe_style/error": 1})]
    assert "EVALUATION FAILED: probe_style at step 3 is left out, training goes on" in caplog.text
    assert "out of memory" in caplog.text


def test_fail_fast_stops_training(tmp_path: Path, make_context: Make) -> None:
    probe = Probe(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, make_context, [(probe, EvaluationConfig(every_n_steps=4, fail_fast=True))])


def test_missing_files_stop_before_training_starts(tmp_path: Path, make_context: Make) -> None:
    probe = Probe(FileNotFoundError("no questions"))
    with pytest.raises(FileNotFoundError, match="no questions"):
        train(tmp_path, make_context, [(probe, EvaluationConfig())])
    assert probe.steps == []


def test_evaluates_at_optimizer_steps_and_once_each(tmp_path: Path, make_context: Make) -> None:
    often, end, never = Probe(), Probe(), Probe()
    often.name, end.name = "often", "end"  # type: ignore[method-assign]
    module, _, _ = train(
        tmp_path,
        make_context,
        [
            (often, EvaluationConfig(every_n_steps=2)),
            (end, EvaluationConfig()),
            (never, EvaluationConfig(at_end=False)),
        ],
        accumulate=3,
    )
    assert len(module.losses) == 18
    assert (often.steps, end.steps, never.steps) == ([2, 4, 6], [6], [])


class StopAt(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 4


def test_a_run_that_stops_short_and_resumes_evaluates_every_step_once(tmp_path: Path, make_context: Make) -> None:
    config = EvaluationConfig(every_n_steps=2, at_start=True)
    first = Probe()
    _, _, trainer = train(tmp_path, make_context, [(first, config)], extra=[StopAt()])
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    assert first.steps == [0, 2, 4]
    second = Probe()
    _, log, _ = train(tmp_path, make_context, [(second, config)], ckpt_path=tmp_path / "state.ckpt")
    assert second.steps == [6]
    assert [step for step, _ in log.rows] == [6]
    # an evaluation that a kill cut short is made up for
    shutil.rmtree(tmp_path / "records" / "step-000000004")
    third = Probe()
    train(tmp_path, make_context, [(third, config)], ckpt_path=tmp_path / "state.ckpt")
    assert third.steps == [4]


def test_an_evaluation_cut_short_at_the_last_step_is_made_up_for(tmp_path: Path, make_context: Make) -> None:
    """Also one that is due there for another reason than the end."""
    config = EvaluationConfig(every_n_steps=3, mini=2, full_at=(6,), at_end=False)
    _, _, trainer = train(tmp_path, make_context, [(Probe(), config)])
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    shutil.rmtree(tmp_path / "records")
    full, mini = Probe(), Probe()
    mini.name, mini.mini = "probe_style_mini", True  # type: ignore[method-assign]
    train(tmp_path, make_context, [(full, config)], ckpt_path=tmp_path / "state.ckpt", mini=mini)
    assert (full.steps, mini.steps) == ([6], [6])
    again = Probe()
    train(tmp_path, make_context, [(again, config)], ckpt_path=tmp_path / "state.ckpt")
    assert again.steps == []


def test_the_end_of_a_run_cut_short_is_not_the_end(tmp_path: Path, make_context: Make) -> None:
    probe = Probe()
    train(tmp_path, make_context, [(probe, EvaluationConfig())], extra=[StopAt()])
    assert probe.steps == []


def test_the_end_is_evaluated_on_the_device_of_training(tmp_path: Path, make_context: Make) -> None:
    """A device without storage stands in for a GPU; Lightning has moved the module away from it."""
    found = list[str]()

    def context(trainer: pl.Trainer, module: pl.LightningModule) -> EvaluationContext:
        found.append(next(module.parameters()).device.type)
        return make_context(folder=tmp_path)

    callback = EvaluationCallback(Probe(), cast(Tracker, Log()), EvaluationConfig(), context)
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    trainer = SimpleNamespace(global_step=6, max_steps=6, should_stop=False, strategy=strategy)
    callback.on_fit_end(cast(pl.Trainer, trainer), Dropped())
    assert found == ["meta"]


@pytest.mark.parametrize(("error", "stops"), [(CheckpointError("no room"), True), (RuntimeError("no memory"), False)])
def test_a_save_that_failed_says_for_itself_whether_training_goes_on(
    tmp_path: Path, make_context: Make, error: Exception, stops: bool
) -> None:
    """Before an evaluation the checkpoint of its step is waited for."""

    def context(trainer: pl.Trainer, module: pl.LightningModule) -> EvaluationContext:
        raise error

    log = Log()
    callback = EvaluationCallback(Probe(), cast(Tracker, log), EvaluationConfig(), context)
    trainer = SimpleNamespace(global_step=6, max_steps=6, should_stop=False)
    trainer.strategy = SimpleNamespace(root_device=torch.device("cpu"))
    with pytest.raises(CheckpointError) if stops else nullcontext():
        callback.on_fit_end(cast(pl.Trainer, trainer), Dropped())
    assert log.rows == ([] if stops else [(6, {"eval/probe_style/error": 1})])


def evaluate_on_one_of_two(rank: int, store: str, rows: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def context(trainer: pl.Trainer, module: pl.LightningModule) -> EvaluationContext:
        if rank == 1:
            raise RuntimeError("out of memory")
        return cast(EvaluationContext, SimpleNamespace())

    log = Log()
    callback = EvaluationCallback(Probe(), cast(Tracker, log), EvaluationConfig(), context)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(global_step=6, max_steps=6, should_stop=False, strategy=strategy)
    callback.on_fit_end(cast(pl.Trainer, trainer), Dropped())
    rows[rank] = log.rows
    distributed.destroy_process_group()


def test_what_fails_on_one_rank_before_a_measure_fails_on_all(tmp_path: Path) -> None:
    """The others would wait for it in the measure."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        rows = manager.dict()
        multiprocessing.spawn(evaluate_on_one_of_two, (str(tmp_path / "store"), rows), nprocs=2)  # type: ignore[no-untyped-call]
        assert dict(rows) == {rank: [(6, {"eval/probe_style/error": 1})] for rank in (0, 1)}


class Interrupted(Probe):
    """Two samples; a signal comes while the first is generated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, signal: str | None) -> None:
        super().__init__()
        self.monkeypatch, self.signal, self.made = monkeypatch, signal, list[str]()

    def sample_ids(self) -> Sequence[str]:
        return ["one", "two"]

    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        for sample in ids:
            self.monkeypatch.setattr(signals, "_received", self.signal)
            self.made.append(sample)
            yield [{"sample_id": sample, "split": "all", "prompt": ""}]


@pytest.mark.parametrize("step", [3, 6])
def test_a_signal_during_an_evaluation_stops_it_and_the_resumed_run_makes_the_rest(
    tmp_path: Path, make_context: Make, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the middle of a run, and at its end, where nothing else would look at the flag."""
    config = EvaluationConfig(every_n_steps=3 if step == 3 else 0)
    first = Interrupted(monkeypatch, "SIGUSR1")
    _, log, trainer = train(tmp_path, make_context, [(first, config)])
    assert (first.made, log.rows, trainer.should_stop, trainer.global_step) == (["one"], [], True, step)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    second = Interrupted(monkeypatch, None)
    monkeypatch.setattr(signals, "_received", None)
    _, log, trainer = train(tmp_path, make_context, [(second, config)], ckpt_path=tmp_path / "state.ckpt")
    assert second.made[0] == "two"
    assert log.rows[0] == (step, {"eval/probe_style/n": 1.0})
    assert (trainer.should_stop, trainer.global_step) == (False, 6)


def test_build_measures() -> None:
    assert build_measures(EvaluationConfig()) == []
    config = EvaluationConfig(
        val=ValConfig(),
        pope=PopeConfig(folder="p", images="i", data="scenes"),
        gqa=GqaConfig(questions="q", images="i"),
        vqav2=VqaV2Config(questions="q", images="i", annotations="a"),
        mme=MmeConfig(source="m", limit=2),
        mmmu=MmmuConfig(folder="m", split="dev"),
        content=ContentConfig(captions="c", images="i"),
        fid=FidConfig(captions="c", images="i", n=256),
        samples=SamplesConfig(prompts=("a",)),
        speed=SpeedConfig(),
    )
    measures = build_measures(config)
    assert [measure.key for measure in measures] == list(KEYS)
    assert [measure.name for measure in measures] == [
        "val",
        "pope_style",
        "gqa",
        "vqav2",
        "mme_mini",
        "mmmu_dev",
        "content_scenes",
        "fd_pool",
        "samples",
        "speed",
    ]


def test_problems_name_their_section() -> None:
    config = EvaluationConfig(
        every_n_steps=-1,
        batch_size=0,
        pope=PopeConfig(folder="p", images="i", limit=0),
        fid=FidConfig(captions="c", images="i", n=1),
    )
    assert config.problems() == [
        "evaluation.every_n_steps=-1 must be 0 (only at start or end) or more",
        "evaluation.batch_size=0 must be at least 1",
        "evaluation.pope: limit=0 must be at least 1; null takes all questions",
        "evaluation.fid: n=1 must be at least 2: one picture has no covariance",
    ]
    assert EvaluationConfig().problems() == []


def test_few_samples_in_between_and_all_at_chosen_steps(tmp_path: Path, make_context: Make) -> None:
    full, mini = Probe(), Probe()
    mini.name, mini.mini = "probe_style_mini", True  # type: ignore[method-assign]
    config = EvaluationConfig(every_n_steps=2, mini=2, full_at=(3, 4), at_start=True)
    _, log, _ = train(tmp_path, make_context, [(full, config)], mini=mini)
    assert (full.steps, mini.steps) == ([0, 3, 4, 6], [2, 4, 6])
    keys: dict[str, list[int]] = {}
    for step, row in log.rows:
        keys.setdefault(next(iter(row)), []).append(step)
    steps = [f"probe_style-step-{step:09d}" for step in (0, 3, 4, 6)]
    assert log.files == [(name, "eval_predictions", ["protocol.json", "rank0.jsonl"]) for name in steps]
    assert keys == {"eval/probe_style/n": [0, 3, 4, 6], "eval_mini/probe_style/n": [2, 4, 6]}


def test_few_samples_of_a_part_share_no_key_with_it(tmp_path: Path, make_context: Make) -> None:
    """A part of the official questions goes by the same name, however small it is."""
    full, mini = Probe(), Probe()
    mini.mini = True
    config = EvaluationConfig(every_n_steps=2, mini=2, full_at=(3,), at_end=False)
    _, log, _ = train(tmp_path, make_context, [(full, config)], mini=mini)
    keys = [(step, key) for step, row in log.rows for key in row]
    mini_key, full_key = "eval_mini/probe_style/n", "eval/probe_style/n"
    assert keys == [(2, mini_key), (3, full_key), (4, mini_key), (6, mini_key)]
    assert [name for name, _, _ in log.files] == ["probe_style-step-000000003"]


class Slow(Probe):
    """Two samples, of which the clock allows one."""

    def sample_ids(self) -> Sequence[str]:
        return ["one", "two"]

    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        for sample in ids:
            time.sleep(0.01)
            yield [{"sample_id": sample, "split": "all", "prompt": ""}]


def test_an_evaluation_that_takes_too_long_is_left_unfinished(tmp_path: Path, make_context: Make) -> None:
    config = EvaluationConfig(every_n_steps=4, at_end=False, max_seconds=1e-3, fail_fast=True)
    module, log, _ = train(tmp_path, make_context, [(Slow(), config)])
    assert log.rows == [(4, {"eval/probe_style/unfinished": 1})]
    assert len(module.losses) == 6


def test_mini_measures_are_of_few_samples_and_never_of_more_than_the_full_ones() -> None:
    config = EvaluationConfig(
        mini=100,
        pope=PopeConfig(folder="p", images="i"),
        gqa=GqaConfig(questions="q", images="i", limit=20),
        fid=FidConfig(captions="c", images="i", n=256),
        samples=SamplesConfig(prompts=("a",)),
        speed=SpeedConfig(),
    )
    found = {measure.key: measure for measure in build_mini_measures(config)}
    assert list(found) == ["pope", "gqa", "fid", "samples"]
    limits = [found["pope"].config.limit, found["gqa"].config.limit, found["fid"].config.n]  # type: ignore[attr-defined]
    assert limits == [100, 20, 100]
    assert found["pope"].name == "pope_mini"
    assert found["fid"].name == "fd_pool_mini"
    assert build_mini_measures(replace(config, mini=0)) == []
    answers_known_to_evalai = VqaV2Config(questions="q", images="i", split="test2015")
    assert "vqav2" not in {one.key for one in build_mini_measures(replace(config, vqav2=answers_known_to_evalai))}
    scored_here = VqaV2Config(questions="q", images="i", annotations="a")
    [part] = [one for one in build_mini_measures(replace(config, vqav2=scored_here)) if one.key == "vqav2"]
    assert part.name == "vqav2_mini"


@pytest.mark.parametrize(
    ("changes", "full", "mini", "prefix"),
    [
        ({}, "pope", "pope_mini", "eval_mini/pope"),
        ({"limit": 300}, "pope_mini", "pope_mini_mini", "eval_mini/pope_mini"),
        ({"limit": 50}, "pope_mini", "pope_mini_mini", "eval_mini/pope_mini"),
        ({"data": "scenes"}, "pope_style", "pope_style_mini", "eval_mini/pope_style"),
        ({"data": "scenes", "limit": 300}, "pope_style", "pope_style_mini", "eval_mini/pope_style"),
    ],
)
def test_a_part_and_its_small_form_have_folders_and_keys_of_their_own(
    changes: dict[str, Any], full: str, mini: str, prefix: str
) -> None:
    config = EvaluationConfig(mini=100, pope=PopeConfig(folder="p", images="i", **changes))
    [(whole, small)] = build_pairs(config)
    assert small is not None
    assert (whole.name, small.name) == (full, mini)
    assert (whole.prefix, small.prefix) == (f"eval/{full}", prefix)


def test_problems_of_the_schedule() -> None:
    assert EvaluationConfig(mini=1, full_at=(0,), max_seconds=-1).problems() == [
        "evaluation.mini=1 must be 0 (as large as the full evaluation) or at least 2",
        "evaluation.full_at=[0] must hold steps from 1 on",
        "evaluation.max_seconds=-1 must be 0 (as long as it takes) or more",
    ]
