"""The root of the configuration: loading, its rules, and writing it so that it can be loaded again."""

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from datamodules.data_config import Counts
from pipelines.run.config import ConfigError, RunConfig, as_dict, differences, load

MINIMAL = """
name: tiny
stage: {name: unified_finetune}
trainer: {max_steps: 20}
model: {tokenizer: tokenizer.json}
data: {mmu: mmu/manifest.json, t2i: t2i/manifest.json}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_win_over_the_file(file: Path) -> None:
    config = load(file, ["trainer.max_steps=7", "model.adapters.rank=2", "run.dir=/somewhere"])
    assert (config.trainer.max_steps, config.model.adapters.rank, config.name) == (7, 2, "tiny")
    assert config.folder == Path("/somewhere")


def test_the_run_folder_is_named_by_the_run_unless_told(file: Path) -> None:
    assert load(file).folder == Path("runs/tiny")


def test_the_home_folder_may_be_written_short(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load(file, ["run.dir=~/runs/a"]).folder == Path("/home/me/runs/a")
    with pytest.raises(
        ConfigError, match=r"run\.dir=~nobody_here/a: ~ stands for a home folder, but there is no such user"
    ):
        load(file, ["run.dir=~nobody_here/a"])


FULL = [
    "init_from=[runs/a, runs/b]",
    "stage.also_train=[backbone.*]",
    "data.global_batch={mmu: 6, t2i: 96}",
    "optim.betas=[0.8, 0.9]",
    "tracking.tags=[x]",
    "tracking.group=g",
    "evaluation.pope={folder: f, images: i, limit: 3}",
    "evaluation.vqav2={questions: q, images: i, split: test-dev2015}",
    "evaluation.mme={source: m}",
    "evaluation.mmmu={folder: f, split: dev, style: lmms}",
    "evaluation.samples.prompts=[a red circle]",
    "scenes={folder: data/x, images: 5}",
    "run.allow_changed=[seed]",
    "optim.lr=1.0e-7",
]


@pytest.mark.parametrize("overrides", [[], FULL], ids=["minimal", "full"])
def test_a_written_configuration_loads_again_as_the_same(file: Path, tmp_path: Path, overrides: list[str]) -> None:
    config = load(file, overrides)
    written = tmp_path / "config.yaml"
    written.write_text(OmegaConf.to_yaml(OmegaConf.create(as_dict(config))))
    again = load(written)
    assert again == config
    assert differences(as_dict(config), as_dict(again)) == {}


def test_the_values_that_a_round_trip_could_lose(file: Path) -> None:
    config = load(file, FULL)
    assert config.init_from == ("runs/a", "runs/b")
    assert config.data.global_batch == Counts(mmu=6, t2i=96)
    assert config.optim.betas == (0.8, 0.9)
    assert config.optim.lr == 1e-7
    assert config.evaluation.pope is not None
    assert (config.evaluation.pope.limit, config.evaluation.gqa, config.evaluation.fid) == (3, None, None)
    assert config.evaluation.vqav2 is not None
    assert (config.evaluation.vqav2.split, config.evaluation.vqav2.annotations) == ("test-dev2015", "")
    assert as_dict(config)["stage"]["also_train"] == ["backbone.*"]
    assert as_dict(config)["evaluation"]["gqa"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps=0", "trainer.max_steps=0 must be at least 1"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0 must be at least 1"),
        ("hardware.devices=0", "hardware.devices=0 must be at least 1"),
        ("hardware.nodes=0", "hardware.nodes=0 must be at least 1"),
        ("model.tokenizer=''", "model.tokenizer is empty; name a local tokenizer.json"),
        (
            "data.micro_batch.t2i=0",
            "stage unified_finetune trains t2i, but data.micro_batch.t2i=0; it must be at least 1",
        ),
        ("data.mmu=''", "stage unified_finetune trains mmu, but data.mmu is empty; name a shard manifest"),
        (
            "model.vision.kind=features",
            "model.vision.kind=features cannot train MMU: the shards hold images; choose an encoder",
        ),
        (
            "data.global_batch={mmu: 6, t2i: 50}",
            "data.global_batch.t2i=50 is not a multiple of data.micro_batch.t2i=48 on 1 ranks (48 a micro-step); "
            "choose one that is",
        ),
        ("data.global_batch={mmu: 6}", "data.global_batch.t2i=0 is not a multiple of data.micro_batch.t2i=48"),
        (
            "data.global_batch={mmu: 6, t2i: 48}",
            "data.global_batch asks for {'mmu': 2, 't2i': 1} micro-steps per step; each micro-step holds all tasks, so "
            "the ratio of the global batch must be that of data.micro_batch",
        ),
        ("model.vision.patch_size=0", "model.vision.patch_size=0 must be at least 1"),
        ("model.vision.image_size=0", "model.vision.image_size=0 must be at least 1"),
        (
            "model.vision.patch_size=7",
            "model.vision.patch_size=7 does not divide model.vision.image_size=64; choose ",
        ),
        (
            "model.headdim=48",
            "model.headdim=48 does not divide expand*d_model=4096; choose ",
        ),
        ("model.text_embedding_std=0", "model.text_embedding_std=0.0 must be above 0"),
        ("name=a/b", "name='a/b' must be a folder name"),
        ("name=..", "name='..' must be a folder name"),
        ("name=-rf", "name='-rf' must be a folder name"),
        (f"name={'n' * 201}", "the last no blank, at most 200 bytes"),
        ("data.template.question=What", "data.template.question='What' must hold {question} once"),
        ("model.d_conv=1", "model.d_conv=1 must be at least 2"),
        ("stage.loss_weights.mmu=0", "stage.loss_weights.mmu=0.0 must be above 0"),
        ("model.headdim=0", "model.headdim=0 must be at least 1"),
        ("model.vocab_size=50290", "model.vocab_size=50290 is not a multiple of 16; round it up"),
        (
            "model.t2i_positions=328",
            "a T2I sequence has 329 positions (caption_length + image_tokens + 5) but model.t2i_positions=328; "
            "raise it to at least 329",
        ),
        (
            "model.mmu_positions=516",
            "an MMU sequence has 517 positions (patches + mmu_text_length + 4) but model.mmu_positions=516; "
            "raise it to at least 517",
        ),
        (
            "model.adapters.rank=0",
            "model.adapters.rank=0 must be at least 1; model.lora=none turns adapters off",
        ),
        ("model.adapters.dropout=1", "model.adapters.dropout=1.0 must lie in [0, 1)"),
        ("optim.lr=0", "optim.lr=0.0 must be above 0; the paper uses 1e-3 (MMU), 8e-4 (T2I), 1e-4 (unified)"),
        ("optim.lr=nan", "optim.lr=nan must be above 0"),
        ("optim.weight_decay=nan", "optim.weight_decay=nan must be a finite number"),
        ("optim.lr=inf", "optim.lr=inf must be a finite number"),
        ("optim.betas=[0.9, .nan]", "optim.betas[1]=nan must be a finite number"),
        ("guards.spike_sigma=-.inf", "guards.spike_sigma=-inf must be a finite number"),
        ("optim.betas=[0.9, 1.0]", "optim.betas=[0.9, 1.0] must lie in [0, 1); the paper uses [0.9, 0.95]"),
        ("optim.eps=0", "optim.eps=0.0 must be above 0"),
        ("optim.weight_decay=-1", "optim.weight_decay=-1.0 must be 0 or more; 0 turns it off"),
        ("optim.warmup_steps=-1", "optim.warmup_steps=-1 must be 0 or more"),
        ("optim.clip_grad_norm=-1", "optim.clip_grad_norm=-1.0 must be 0 or more"),
        ("optim.min_lr_ratio=2", "optim.min_lr_ratio=2.0 must lie in [0, 1]; the released value is 0.01"),
        ("hardware.threads=-1", "hardware.threads=-1 must be 0 or more"),
        ("data.num_workers=-1", "data.num_workers=-1 must lie in [0, 256]"),
        ("data.num_workers=100000000000", "data.num_workers=100000000000 must lie in [0, 256]"),
        ("checkpoint.every_n_steps=0", "checkpoint.every_n_steps=0 must be at least 1"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last=0 must be at least 1"),
        ("checkpoint.max_errors=0", "checkpoint.max_errors=0 must be at least 1"),
        ("evaluation.every_n_steps=-1", "evaluation.every_n_steps=-1 must be 0 (only at start or end) or more"),
        ("tracking.project=team/omni", "tracking.project='team/omni' holds /"),
        ("evaluation.batch_size=0", "evaluation.batch_size=0 must be at least 1"),
        ("evaluation.fid={captions: c, images: i, n: 1}", "evaluation.fid: n=1 must be at least 2"),
        ("evaluation.samples={n: 2}", "evaluation.samples: give either prompts or a captions file"),
    ],
)
def test_each_rule_is_told_with_its_way_out(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, [override])
    assert str(error.value).startswith(f"{file}:\n  - ")
    assert message in str(error.value)


@pytest.mark.parametrize("override", ["tracking.project=a/b", "tracking.entity=a:b", "tracking.tags=['']"])
def test_what_wandb_refuses_is_refused_only_where_wandb_is_used(
    file: Path, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for mode in ("auto", "online", "offline"):
        with pytest.raises(ConfigError, match=rf"tiny\.yaml:\n  - {override.partition('=')[0]}"):
            load(file, [override, f"tracking.wandb={mode}"])
    load(file, [override, "tracking.wandb=disabled"])
    load(file, [override], tracks=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    load(file, [override])
    with pytest.raises(ConfigError):
        load(file, [override, "tracking.wandb=offline"])


@pytest.mark.parametrize("length", [128, 129, 200])
def test_a_name_may_be_longer_than_wandb_shows_it(file: Path, length: int) -> None:
    assert load(file, [f"name={'n' * length}", "tracking.wandb=online"]).name == "n" * length


SIZES = (
    *("d_model", "n_layer", "d_state", "d_conv", "expand", "headdim", "chunk_size"),
    *("image_tokens", "caption_length", "mmu_text_length"),
)


@pytest.mark.parametrize("name", SIZES)
def test_each_size_of_the_model_is_at_least_one(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{name}=0 must be at least 1"):
        load(file, [f"model.{name}=0"])


def test_broken_rules_of_all_sections_are_told_together(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, ["optim.lr=0", "checkpoint.keep_last=0", "trainer.max_steps=0", "data.t2i=''"])
    assert str(error.value).count("\n  - ") == 4


def test_a_stage_needs_only_its_own_task(file: Path) -> None:
    config = load(file, ["stage.name=mmu_pretrain", "data.t2i=''", "data.micro_batch={mmu: 8, t2i: 0}"])
    assert config.problems() == []
    assert load(file, ["stage.name=t2i_pretrain", "data.mmu=''", "model.vision.kind=features"]).problems() == []


def test_an_unknown_key_names_its_source_and_the_key_that_was_meant(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, ["trainer.max_step=3"])
    assert str(error.value) == (
        "the command line: trainer.max_step=3: there is no key trainer.max_step; did you mean trainer.max_steps=3?"
    )
    file.write_text(file.read_text() + "optimizer: {lr: 0.1}\n")
    with pytest.raises(ConfigError) as error:
        load(file)
    assert str(error.value) == f"{file}: optimizer (given: {{'lr': 0.1}}): there is no such key; did you mean optim?"


def test_differences_are_leaves_with_both_values(file: Path) -> None:
    old = load(file)
    new = replace(old, seed=1, data=replace(old.data, micro_batch=Counts(mmu=4, t2i=48), global_batch=Counts(mmu=4)))
    assert isinstance(new, RunConfig)
    assert differences(as_dict(old), as_dict(new)) == {
        "seed": (0, 1),
        "data.micro_batch.mmu": (3, 4),
        "data.global_batch": (None, {"mmu": 4, "t2i": 0}),
    }
    assert differences({"a": 1}, {"b": {"c": 2}}) == {"a": (1, None), "b": (None, {"c": 2})}
