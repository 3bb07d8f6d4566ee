"""What an existing run folder means: start, resume, leave alone, or refuse."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from datamodules.data_config import Counts
from modules.checkpoints import STATE, CheckpointError, commit
from pipelines.run import fit
from pipelines.run.config import ConfigError, RunConfig, load
from pipelines.run.provenance import provenance
from pipelines.run.runfolder import RunFolder, open_run
from pipelines.run.texts import override

MINIMAL = """
name: tiny
stage: {name: unified_finetune}
trainer: {max_steps: 20}
model: {tokenizer: tokenizer.json}
data: {mmu: mmu/manifest.json, t2i: t2i/manifest.json}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def configured(tmp_path: Path, folder: Path) -> Callable[..., RunConfig]:
    file = tmp_path / "tiny.yaml"
    file.write_text(MINIMAL)
    return lambda *overrides: load(file, [f"run.dir={folder}", *overrides])


@pytest.fixture
def begun(folder: Path, configured: Callable[..., RunConfig], finished_run: Path) -> Path:
    """A run that was begun on one device and has a checkpoint."""
    open_run(configured()).begin({"mmu": "a"})
    shutil.copytree(finished_run / "checkpoints", folder / "checkpoints")
    return folder


def test_a_folder_that_is_not_there_or_empty_starts_anew(folder: Path, configured: Callable[..., RunConfig]) -> None:
    for _ in range(2):
        run = open_run(configured())
        assert (run.path, run.checkpoint, run.complete) == (folder, None, False)
        assert not folder.exists() or not any(folder.iterdir())  # deciding writes nothing
        folder.mkdir(exist_ok=True)


def test_files_that_are_no_run_are_left_alone(folder: Path, configured: Callable[..., RunConfig]) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError) as error:
        open_run(configured())
    assert f"run folder {folder} holds files but no config.yaml" in str(error.value)
    assert "Choose another run.dir" in str(error.value)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_another_programs_config_is_not_a_run_of_this_one(folder: Path, configured: Callable[..., RunConfig]) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text("learning_rate: 3\n")
    with pytest.raises(ConfigError, match=r"belongs to another configuration:\n") as error:
        open_run(configured())
    assert "learning_rate: 3 there, None now" in str(error.value)


@pytest.mark.parametrize("name", ["${name}", "o'brien", "lr #2", "\\${name}", "007"])
def test_a_folder_of_an_odd_name_is_read_back(tmp_path: Path, configured: Callable[..., RunConfig], name: str) -> None:
    config = configured(override("run.dir", tmp_path / name), override("tracking.group", name))
    open_run(config).begin({"mmu": "a"})
    again = load(tmp_path / name / "config.yaml")
    assert (again.run.dir, again.tracking.group) == (str(tmp_path / name), name)
    run = open_run(again)
    assert RunFolder.from_json(run.as_json()) == run


def test_begin_writes_what_can_be_run_again(folder: Path, configured: Callable[..., RunConfig]) -> None:
    run = open_run(configured())
    assert run.begin({"mmu": "a"})[1] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "provenance.json"]
    assert load(folder / "config.yaml") == run.config
    [facts] = json.loads((folder / "provenance.json").read_text())["attempts"]
    assert facts["data"] == {"mmu": "a"}
    assert set(provenance()) <= facts.keys()
    assert facts["packages"]["torch"]
    assert facts["packages"]["mamba-ssm"] is None or isinstance(facts["packages"]["mamba-ssm"], str)
    assert facts["resumed"] is None


def test_the_tracking_run_is_the_same_in_every_attempt(begun: Path, configured: Callable[..., RunConfig]) -> None:
    first = json.loads((begun / "provenance.json").read_text())["wandb_run_id"]
    run = open_run(configured())
    assert run.begin({"mmu": "b"}) == (first, 2)
    facts = json.loads((begun / "provenance.json").read_text())
    assert facts["wandb_run_id"] == first
    assert [attempt["data"] for attempt in facts["attempts"]] == [{"mmu": "a"}, {"mmu": "b"}]
    assert [attempt["resumed"] for attempt in facts["attempts"]] == [None, "step-000000020"]


def test_a_lost_provenance_loses_neither_tracking_run_nor_attempts(
    begun: Path, configured: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = begun / "checkpoints" / "step-000000020"
    state = torch.load(checkpoint / STATE, weights_only=True)
    (begun / "new").mkdir()
    torch.save({**state, "run": {"wandb_run_id": "abcdef", "attempt": 3}}, begun / "new" / STATE)
    commit(begun / "new", checkpoint, 20)
    (begun / "metrics.jsonl").write_text("".join(f'{{"step": {20 + n}, "attempt": {n}}}\n' for n in (1, 2, 3)))
    (begun / "provenance.json").unlink()
    assert open_run(configured()).begin({}) == ("abcdef", 4)
    assert "provenance.json is missing; the run continues as W&B run abcdef" in capsys.readouterr().err
    assert open_run(configured()).begin({}) == ("abcdef", 5)
    facts = json.loads((begun / "provenance.json").read_text())
    assert [attempt["attempt"] for attempt in facts["attempts"]] == [4, 5]


def test_provenance_holds_no_secrets(folder: Path, configured: Callable[..., RunConfig]) -> None:
    open_run(configured()).begin({"mmu": "a"}, {"init_from/https://me:planted@host/run": "b", "num_tokens": "5"})
    text = (folder / "provenance.json").read_text()
    assert "planted" not in text
    assert '"num_tokens": "5"' in text


def test_two_runs_have_two_tracking_runs(tmp_path: Path, configured: Callable[..., RunConfig]) -> None:
    ids = {open_run(configured(f"run.dir={tmp_path / name}")).begin({})[0] for name in "ab"}
    assert len(ids) == 2


def test_a_checkpoint_is_resumed(begun: Path, configured: Callable[..., RunConfig]) -> None:
    run = open_run(configured())
    assert (run.checkpoint, run.complete) == (begun / "checkpoints" / "step-000000020", False)


def test_a_run_that_was_cut_before_its_first_checkpoint_starts_again_and_says_so(
    begun: Path, configured: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(begun / "checkpoints")
    (begun / "metrics.jsonl").write_text("")  # as another rank finds it while the first attempt starts
    assert open_run(configured()).checkpoint is None
    assert capsys.readouterr().err == ""
    (begun / "metrics.jsonl").write_text('{"step": 1, "attempt": 1}\n')
    assert open_run(configured()).checkpoint is None
    assert f"WARNING: {begun} has no checkpoint yet: the run starts again" in capsys.readouterr().err


def test_damaged_checkpoints_are_never_taken_for_a_fresh_start(
    begun: Path, configured: Callable[..., RunConfig]
) -> None:
    (begun / "checkpoints" / "step-000000020" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
        open_run(configured())


def test_a_complete_run_is_recognised(begun: Path, configured: Callable[..., RunConfig]) -> None:
    run = open_run(configured())
    run.finish(20)
    assert (begun / "COMPLETE").read_text() == "20\n"
    assert open_run(configured()).complete


def test_a_complete_run_that_is_asked_for_more_steps_goes_on_loudly(
    begun: Path, configured: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    open_run(configured()).finish(20)
    with pytest.raises(ConfigError, match=r"trainer\.max_steps: 20 there, 30 now"):
        open_run(configured("trainer.max_steps=30"))
    run = open_run(configured("trainer.max_steps=30", "run.allow_changed=[trainer.max_steps]"))
    assert (run.complete, run.checkpoint) == (False, begun / "checkpoints" / "step-000000020")
    assert f"WARNING: {begun} was complete at step 20 and is trained further" in capsys.readouterr().err
    assert (begun / "COMPLETE").exists()  # deciding writes nothing
    run.begin({})
    assert not (begun / "COMPLETE").exists()


def test_a_complete_run_is_not_taken_back(begun: Path, configured: Callable[..., RunConfig]) -> None:
    open_run(configured()).finish(20)
    with pytest.raises(ConfigError, match=r"is complete at step 20, beyond trainer\.max_steps=10: steps already"):
        open_run(configured("trainer.max_steps=10", "run.allow_changed=[trainer.max_steps]"))


def test_complete_is_not_believed_without_its_checkpoint(begun: Path, configured: Callable[..., RunConfig]) -> None:
    open_run(configured()).finish(20)
    (begun / "checkpoints" / "step-000000020").rename(begun / "checkpoints" / "step-000000010")
    manifest = begun / "checkpoints" / "step-000000010" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": 10}))
    with pytest.raises(ConfigError) as error:
        open_run(configured())
    assert str(error.value) == (
        f"run folder {begun} is complete at step 20 (COMPLETE), but step-000000020 is missing or damaged. Restore "
        "that checkpoint, or delete COMPLETE to train again from step-000000010"
    )
    shutil.rmtree(begun / "checkpoints")
    with pytest.raises(ConfigError, match="delete COMPLETE to train again from the beginning"):
        open_run(configured())
    (begun / "COMPLETE").write_bytes(b"\0\xff")
    with pytest.raises(ConfigError, match=r"COMPLETE is damaged: it holds .* instead of a step\. Delete it"):
        open_run(configured())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"config\.yaml is empty; restore its content\. Each checkpoint holds it, too"),
        (b"name: [tiny\n", r"config\.yaml is not valid YAML"),
        (b"\xff\xfe\0", r"config\.yaml is not valid YAML"),
        (b"[tiny]\n", r"config\.yaml must hold keys and values"),
        (b"data: [1]\n", r"belongs to another configuration"),
        (b"data: {global_batch: {mmu: 3, t2h: 48}}\n", r"data\.global_batch\.t2h: 48 there"),
    ],
)
def test_a_damaged_configuration_is_named(
    begun: Path, configured: Callable[..., RunConfig], content: bytes, message: str
) -> None:
    (begun / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        open_run(configured())


def test_a_key_that_is_newer_than_the_run_does_not_stop_it(begun: Path, configured: Callable[..., RunConfig]) -> None:
    stored = OmegaConf.load(begun / "config.yaml")
    del stored["optim"]["min_lr_ratio"], stored["data"]["pad"]
    OmegaConf.save(stored, begun / "config.yaml")
    assert open_run(configured()).checkpoint == begun / "checkpoints" / "step-000000020"
    with pytest.raises(ConfigError, match=r"optim\.min_lr_ratio: 0\.01 there, 0\.5 now"):
        open_run(configured("optim.min_lr_ratio=0.5"))


def test_another_configuration_is_refused_with_the_differences(
    begun: Path, configured: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError) as error:
        open_run(configured("optim.lr=0.5", "model.n_layer=3", "tracking.project=other"))
    assert str(error.value) == (
        f"run folder {begun} belongs to another configuration:\n"
        "  model.n_layer: 48 there, 3 now\n"
        "  optim.lr: 0.0001 there, 0.5 now\n"
        "Choose another run.dir, or accept the change with 'run.allow_changed=[model.n_layer,optim.lr]'"
    )


def test_a_change_that_is_allowed_by_name_is_accepted_and_kept(
    begun: Path, configured: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError, match=r"model\.n_layer"):
        open_run(configured("optim.lr=0.5", "model.n_layer=3", "run.allow_changed=[optim.lr]"))
    run = open_run(configured("optim.lr=0.5", "model.n_layer=3", "run.allow_changed=[optim, model.n_layer]"))
    run.begin({})
    stored = load(begun / "config.yaml")
    assert (stored.optim.lr, stored.model.n_layer) == (0.5, 3)
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.5 there, 0\.0001 now"):
        open_run(configured())


@pytest.mark.parametrize(
    "override",
    [
        "checkpoint.every_n_steps=3",
        "evaluation.batch_size=3",
        "tracking.wandb=disabled",
        "hardware.threads=1",
        "trainer.log_every_n_steps=3",
        "data.num_workers=2",
        "data.log_samples=true",
        "data.accept_changed=true",
        "model.vq=elsewhere.safetensors",
        "pretrained=/elsewhere/model.safetensors",
        "pretrained_adapters.mmu=/elsewhere/mmu",
    ],
)
def test_what_does_not_touch_the_weights_may_change(
    begun: Path, configured: Callable[..., RunConfig], override: str
) -> None:
    assert open_run(configured(override)).checkpoint == begun / "checkpoints" / "step-000000020"


@pytest.mark.parametrize("override", ["seed=1", "trainer.max_steps=21", "model.vision.patch_size=16", "name=other"])
def test_what_does_touch_them_may_not(begun: Path, configured: Callable[..., RunConfig], override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        open_run(configured(override))


def test_the_global_batch_is_settled_by_the_first_attempt(folder: Path, configured: Callable[..., RunConfig]) -> None:
    run = open_run(configured("hardware.devices=2", "hardware.nodes=2"))
    assert run.config.data.global_batch == Counts(mmu=12, t2i=192)
    run.begin({})
    for devices, micro_steps in ((1, 4), (2, 2), (4, 1)):
        again = open_run(configured(f"hardware.devices={devices}")).config
        assert again.data.global_batch == Counts(mmu=12, t2i=192)
        assert again.data.accumulation(("mmu", "t2i"), devices) == micro_steps


def test_devices_that_do_not_divide_the_global_batch_are_refused(
    begun: Path, configured: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError) as error:
        open_run(configured("hardware.devices=2"))
    assert f"{begun}:\n" in str(error.value)
    assert "data.global_batch.mmu=3 is not a multiple of data.micro_batch.mmu=3 on 2 ranks" in str(error.value)


def test_a_folder_that_another_rank_is_just_making_counts_as_new(
    folder: Path, configured: Callable[..., RunConfig]
) -> None:
    folder.mkdir()
    (folder / ".config.yaml.tmp").touch()
    assert open_run(configured()).checkpoint is None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[1]", b"5", b"null", b"\0\0", b"\xff\xfe", b"[" * 100_000, b'{"wandb_run_id": "a", "attem'),
        *(b"{}", b'{"attempts": null}', b'{"attempts": [1]}', b'{"attempts": {"0": {}}}'),
        *(
            b'{"attempts": [], "wandb_run_id": 5}',
            b'{"attempts": [{"weights": [1]}]}',
            b'{"attempts": [{"data": "x"}]}',
        ),
        *(
            b'{"attempts": [{"attempt": "two"}]}',
            b'{"attempts": [{"attempt": 1e400}]}',
            b'{"attempts": [{"time": NaN}]}',
        ),
        *(b'{"attempts": [{"time": 1e300}]}', b'{"attempts": [{"threads": -1}]}', b'{"attempts": [{"resumed": 4}]}'),
    ],
)
def test_a_damaged_provenance_is_named(begun: Path, configured: Callable[..., RunConfig], content: bytes) -> None:
    (begun / "provenance.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"provenance\.json is damaged \(.*; restore it, or move it away") as error:
        open_run(configured())
    assert len(str(error.value)) < 500
    with pytest.raises(ConfigError, match=r"provenance\.json is damaged"):
        RunFolder(begun, configured(), None, complete=False).begin({})


def test_a_resume_knows_how_the_attempt_before_computed(begun: Path, configured: Callable[..., RunConfig]) -> None:
    run = open_run(configured())
    assert (run.threads, run.cpu_capability) == (torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    assert RunFolder.from_json(run.as_json()) == run
    (begun / "provenance.json").write_text('{"attempts": [{"threads": 7}, {"code": "older"}]}')
    assert open_run(configured()).threads == 0


@pytest.mark.parametrize("given", ["a/b", " a", "a:b", "a\nb", "i" * 129])
def test_an_id_in_the_environment_that_wandb_refuses_is_refused(
    folder: Path, configured: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", given)
    with pytest.raises(ConfigError, match=r"WANDB_RUN_ID=.*W&B takes .*; correct or unset it"):
        open_run(configured()).begin({})
    assert not (folder / "config.yaml").exists()


def test_a_resumed_run_keeps_its_vision_encoder(folder: Path, configured: Callable[..., RunConfig]) -> None:
    first = RunFolder(folder, configured(), None, complete=False)
    first.begin({}, {"vision": "a", "pretrained/model.safetensors": "x"})
    resumed = replace(first, checkpoint=folder / "checkpoints" / "step-000000002")
    assert resumed.begin({}, {"vision": "a"})[1] == 2
    with pytest.raises(
        ConfigError, match=r"vision encoder's weights \(b\) are not the ones the run started with \(a\)"
    ):
        resumed.begin({}, {"vision": "b"})
    assert first.begin({}, {"vision": "b"})[1] == 3  # begun anew, nothing was learnt with the other one


def test_a_new_run_takes_the_id_of_the_agent_and_keeps_it(
    folder: Path, configured: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    config = configured()
    assert open_run(config).begin({}) == ("trial1", 1)
    assert open_run(config).begin({}) == ("trial1", 2)
    monkeypatch.setenv("WANDB_RUN_ID", "trial2")
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="belongs to W&B run trial1, but the sweep's agent started run trial2; leave"):
        open_run(config).begin({})
    assert (folder / "config.yaml").read_text() == before
    monkeypatch.delenv("WANDB_SWEEP_ID")  # not of a sweep: the folder's own run goes on
    assert open_run(config).begin({}) == ("trial1", 3)


def test_the_folder_is_judged_again_once_it_is_held(
    folder: Path, configured: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and holding, another start of another configuration made the folder its own."""

    @contextmanager
    def late(path: Path, _seconds: float) -> Iterator[None]:
        RunFolder(path, configured("seed=5"), None, False).begin({})
        yield

    monkeypatch.setattr(fit, "claim", late)
    with ExitStack() as held, pytest.raises(ConfigError, match="seed: 5 there, 0 now"):
        fit._open(configured(), held)
    assert load(folder / "config.yaml").seed == 5
