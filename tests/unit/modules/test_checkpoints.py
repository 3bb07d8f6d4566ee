"""Checkpoint folders are whole or passed over, and a later stage takes each parameter from whoever trained it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from modules.checkpoint_writing import remove_old
from modules.checkpoints import (
    STATE,
    CheckpointError,
    StageResult,
    checkpoint_id,
    commit,
    find_checkpoint,
    latest_valid,
    load_results,
    model_weights,
    problem,
    read_facts,
    read_state,
    refuse_misfit,
    weights_fingerprint,
)
from modules.files import step_name
from modules.omnimamba.model import OmniMamba
from modules.stage_modules import STAGE_MODULES
from pipelines.run.config import RunConfig
from pipelines.run.overrides import build


def save(checkpoints: Path, step: int, content: object = None) -> Path:
    temporary = checkpoints / "temporary"
    (temporary / "more").mkdir(parents=True)
    torch.save({"global_step": step} if content is None else content, temporary / STATE)
    (temporary / "more" / "note.txt").write_text(f"step {step}")
    commit(temporary, checkpoints / step_name(step), step)
    return checkpoints / step_name(step)


def test_names_sort_by_step() -> None:
    assert step_name(20) == "step-000000020"
    assert sorted(map(step_name, (1000, 999, 10**8))) == list(map(step_name, (999, 1000, 10**8)))


def test_a_committed_checkpoint_is_whole_and_lists_its_files(tmp_path: Path) -> None:
    folder = save(tmp_path, 20)
    assert problem(folder) is None
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format_version"], manifest["step"]) == (1, 20)
    assert sorted(manifest["files"]) == ["more/note.txt", "state.ckpt"]
    assert manifest["files"]["more/note.txt"] == {"bytes": 7, "sha256": hashlib.sha256(b"step 20").hexdigest()}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000020"]  # nothing temporary is left


class Program:
    """Whoever unpickles this in full runs a program."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("the program ran",)


STATES = [
    (Program(), r"it holds \S*print, and loading that could run any program"),
    ({"global_step": 4, "state_dict": {"model.a": torch.ones(2)}, "extra": Program()}, r"it holds \S*print, and"),
    ([1, 2], "its state: is \\[1, 2\\], expected an object"),
    ({"global_step": "four"}, "its state: global_step is 'four', expected a whole number"),
    ({"global_step": -1}, "its state: global_step is -1, expected at least 0"),
    ({"state_dict": [1]}, "its state: state_dict is \\[1\\], expected an object"),
    ({"stage": {"trained": 5}}, "its state: stage.trained is 5, expected a list"),
    ({"stage": {}}, "its state: stage.trained is missing"),
    ({"run": "x"}, "its state: run is 'x', expected an object"),
]


@pytest.mark.parametrize(("content", "found"), STATES)
def test_a_sealed_state_of_another_kind_is_a_message_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, found: str
) -> None:
    folder = save(tmp_path, 4, content)
    assert problem(folder) is None  # by its seal it is whole
    for read in (read_state, read_facts, lambda folder: StageResult.read(folder, warn=str)):
        with pytest.raises(CheckpointError, match=rf"checkpoint {folder} .*{found}.*; remove that folder"):
            read(folder)
    assert "ran" not in capsys.readouterr().out


def test_bytes_that_are_no_state_are_a_message(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    for content in (b"", b"no zip", (folder / STATE).read_bytes()[:-40]):
        (folder / STATE).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.ckpt: it is damaged, or of another kind\); remove that"):
            read_state(folder)


def test_an_older_checkpoint_with_a_state_of_another_kind_is_passed_over(tmp_path: Path) -> None:
    good, bad = save(tmp_path, 4), save(tmp_path, 8, Program())
    manifest = json.loads((bad / "manifest.json").read_text())
    del manifest["finite"]  # written before numbers were checked, so they are read now
    (bad / "manifest.json").write_text(json.dumps(manifest))
    warnings: list[str] = []
    assert latest_valid(tmp_path, warnings.append) == good
    assert "loading that could run any program" in warnings[0]


def test_a_checkpoint_that_does_not_say_what_it_trained_is_no_result(tmp_path: Path) -> None:
    folder = save(tmp_path, 4, {"global_step": 4, "state_dict": {}})
    with pytest.raises(CheckpointError, match="does not say what its stage trained; name a run of this code"):
        StageResult.read(folder, warn=str)


def test_a_step_that_is_saved_again_replaces_the_older_attempts(tmp_path: Path) -> None:
    save(tmp_path, 20, {"attempt": 1})
    assert read_state(save(tmp_path, 20, {"attempt": 2})) == {"attempt": 2}


def truncate(folder: Path) -> None:
    (folder / STATE).write_bytes((folder / STATE).read_bytes()[:-1])


def flip(folder: Path) -> None:
    content = bytearray((folder / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / STATE).write_bytes(content)


def delete(folder: Path) -> None:
    (folder / "more" / "note.txt").unlink()


def unseal(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format_version": 1, "fil')


def empty(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def outdate(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))


def forget_files(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))


def rename_step(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"step": 21}))


def forget_step(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["step"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def delete_all(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGE = [
    (forget_files, "manifest.json does not list state.ckpt"),
    (rename_step, "the manifest says step 21, which is not the folder's"),
    (forget_step, "manifest.json is missing or unreadable"),
    (delete_all, "manifest.json is missing or unreadable"),
    (truncate, "state.ckpt has "),
    (flip, "state.ckpt was altered: its SHA-256 is not the manifest's"),
    (delete, "more/note.txt is missing"),
    (unseal, "manifest.json is missing or unreadable"),
    (garble, "manifest.json is missing or unreadable"),
    (empty, "manifest.json is missing or unreadable"),
    (outdate, "format version 2 is not 1"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path, damage: object, reason: str) -> None:
    older, newer = save(tmp_path, 10), save(tmp_path, 20)
    warnings: list[str] = []
    assert latest_valid(tmp_path, warnings.append) == newer
    assert warnings == []
    damage(newer)  # type: ignore[operator]
    assert reason in str(problem(newer))
    assert latest_valid(tmp_path, warnings.append) == older
    [warning] = warnings
    assert warning.startswith(f"checkpoint {newer} is skipped: ")
    assert reason in warning


def test_a_bit_that_flips_in_the_manifest_is_found(tmp_path: Path) -> None:
    folder = save(tmp_path, 20)
    whole = (folder / "manifest.json").read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        (folder / "manifest.json").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if problem(folder) is None:
            unnoticed.append(place)
    assert unnoticed == []


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert latest_valid(tmp_path / "nowhere", warnings.append) is None
    (tmp_path / ".step-000000030.tmp").mkdir()  # a save that a kill cut short
    assert latest_valid(tmp_path, warnings.append) is None
    truncate(save(tmp_path, 10))
    unseal(save(tmp_path, 20))
    with pytest.raises(CheckpointError) as error:
        latest_valid(tmp_path, warnings.append)
    assert f"all checkpoints in {tmp_path} are damaged (step-000000020: manifest.json is missing" in str(error.value)
    assert "step-000000010: state.ckpt has" in str(error.value)
    assert "Restore one, or move the run folder away to start over." in str(error.value)
    assert len(warnings) == 2


def test_the_oldest_are_removed(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (5, 10, 15, 20)]
    unseal(folders[0])
    remove_old(tmp_path, 2, newest=20)
    assert sorted(tmp_path.iterdir()) == folders[2:]
    remove_old(tmp_path, 2, newest=20)
    assert sorted(tmp_path.iterdir()) == folders[2:]


def test_damaged_later_ones_do_not_push_out_the_one_just_written(tmp_path: Path) -> None:
    """Resumed from 8, because 12 and 16 are damaged; 9 is saved."""
    folders = {step: save(tmp_path, step) for step in (8, 9, 12, 16)}
    for step in (12, 16):
        unseal(folders[step])
    remove_old(tmp_path, 2, newest=9)
    assert latest_valid(tmp_path, lambda _: None) == folders[9]
    assert folders[8].is_dir()


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        ((), (25, 30)),
        ((20,), (25, 30)),
        ((25,), (20, 25, 30)),
        ((20, 25), (15, 20, 25, 30)),
        ((15, 20, 25), (10, 15, 20, 25, 30)),
        ((10, 15, 20, 25), (10, 15, 20, 25, 30)),
    ],
)
def test_no_good_one_is_removed_for_the_sake_of_a_damaged_one(
    tmp_path: Path, damaged: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    """A run resumed from before the damaged ones, with another interval, and has now saved step 30."""
    folders = {step: save(tmp_path, step) for step in (10, 15, 20, 25, 30)}
    for step in damaged:
        (folders[step] / STATE).write_bytes((folders[step] / STATE).read_bytes()[:-1] + b"x")
    remove_old(tmp_path, 2, newest=30)
    assert sorted(tmp_path.iterdir()) == [folders[step] for step in kept]


def test_what_is_known_of_a_checkpoint_is_not_read_again(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (1, 2, 3)]
    known = {folders[2].name: True}
    remove_old(tmp_path, 2, newest=3, known=known)
    assert known == {folders[2].name: True, folders[1].name: True}
    unseal(folders[1])  # nobody looks
    remove_old(tmp_path, 2, newest=3, known=known)
    assert sorted(tmp_path.iterdir()) == folders[1:]


def test_a_checkpoint_may_be_kept_under_another_name(tmp_path: Path) -> None:
    kept = save(tmp_path, 20).rename(tmp_path / "the_good_one")
    assert find_checkpoint(kept, refuse) == kept


FORMAT_1 = Path(__file__).parents[1] / "reference" / "checkpoint_format_1" / "step-000000002"
"""Two steps of stage 1 on a tiny model, as this project wrote them on 2026-11-23."""


def test_a_checkpoint_of_format_1_stays_loadable() -> None:
    """It is what users have; tests/integration/test_faults.py trains on from it."""
    assert problem(FORMAT_1) is None
    state = read_state(FORMAT_1)
    assert state["global_step"] == 2
    weights = model_weights(state)
    config = build(RunConfig, OmegaConf.create(state["run"]["config"]), source="the checkpoint")
    model = OmniMamba(config.model)
    refuse_misfit(weights, {name: value.shape for name, value in model.state_dict().items()}, "it")
    model.load_state_dict(weights)
    stage = STAGE_MODULES[config.stage.name](model, config.stage, config.optim, max_steps=2, seed=0)
    stage.configure_optimizers()["optimizer"].load_state_dict(state["optimizer_states"][0])  # type: ignore[attr-defined]
    result = StageResult.read(FORMAT_1, pytest.fail)
    assert result.trained == set(stage.report.names)
    assert state["MixedDataModule"]["positions"] == {"mmu": 16}


def test_weights_that_do_not_fit_are_named() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(1)}
    fitting = {"a": torch.Size([2, 3]), "b": torch.Size([1]), "c": torch.Size([1])}
    refuse_misfit(weights, fitting, "it")
    with pytest.raises(CheckpointError) as error:
        refuse_misfit(weights, {"a": torch.Size([3, 2]), "b": torch.Size([1]), "d": torch.Size([])}, "it")
    assert str(error.value) == (
        "it does not fit the model: a is (2, 3) there and (3, 2) here, c is (1,) there and unknown here and 1 more. "
        "Keep the model section as it was (run.allow_changed cannot change the shape of weights), or choose another "
        "run.dir to start over"
    )


def refuse(text: str) -> None:
    raise AssertionError(text)


def test_a_path_means_a_checkpoint_or_a_runs_latest(tmp_path: Path) -> None:
    first, second = save(tmp_path / "checkpoints", 10), save(tmp_path / "checkpoints", 20)
    assert find_checkpoint(tmp_path, refuse) == second
    assert find_checkpoint(first, refuse) == first
    truncate(first)
    with pytest.raises(CheckpointError, match=r"step-000000010 cannot be used: state\.ckpt has .*; name another one"):
        find_checkpoint(first, refuse)
    with pytest.raises(CheckpointError, match="step-000000030 cannot be used: there is no such folder"):
        find_checkpoint(tmp_path / "checkpoints" / "step-000000030", refuse)
    with pytest.raises(CheckpointError, match="nowhere cannot be used: there is no such folder"):
        find_checkpoint(tmp_path / "nowhere", refuse)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty holds no checkpoint \(checkpoints/step-\*\)"):
        find_checkpoint(tmp_path / "empty", refuse)


def test_reading_a_state_runs_no_code(tmp_path: Path) -> None:
    state = {"state_dict": {"model.a": torch.arange(3)}, "global_step": 3, "names": ["a"]}
    read = read_state(save(tmp_path, 3, state))
    assert torch.equal(read["state_dict"]["model.a"], torch.arange(3))
    assert (read["global_step"], read["names"]) == (3, ["a"])
    assert model_weights(read).keys() == {"a"}
    with pytest.raises(Exception, match=r"it holds pathlib\.PosixPath, and loading that could run any program"):
        read_state(save(tmp_path, 4, {"path": Path("/")}))


@pytest.mark.parametrize("mapped", [True, False])
def test_a_mapped_state_takes_no_memory_of_its_own(tmp_path: Path, mapped: bool) -> None:
    folder = save(tmp_path, 3, {"weights": torch.arange(1000.0)})
    weights = read_state(folder, mapped=mapped)["weights"]
    assert lies_in(folder / STATE, weights) == mapped
    weights += 1  # what is written there stays with the process
    assert problem(folder) is None


def lies_in(file: Path, tensor: torch.Tensor) -> bool:
    """By the kernel's own table of this process's memory."""
    parts = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [part[0].split("-") for part in parts if part[5:] == [str(file)]]
    return any(int(first, 16) <= tensor.data_ptr() < int(last, 16) for first, last in spans)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            self.register_parameter(name, nn.Parameter(torch.zeros(2)))


def result(origin: str, trained: str, **weights: float) -> StageResult:
    return StageResult(origin, {name: torch.full((2,), value) for name, value in weights.items()}, frozenset(trained))


def loaded(*results: StageResult) -> tuple[dict[str, float], dict[str, list[str]], list[str], list[str]]:
    model = Model()
    report = load_results(model, results)
    values = {name: float(value[0]) for name, value in model.state_dict().items()}
    return values, report.loaded, report.kept, report.unexpected


def test_each_parameter_comes_from_the_stage_that_trained_it() -> None:
    mmu, t2i = result("mmu", "ad", a=1, b=5, c=3), result("t2i", "b", a=7, b=2, c=3)
    for results in ((mmu, t2i), (t2i, mmu)):
        values, origins, kept, unexpected = loaded(*results)
        assert values == {"a": 1, "b": 2, "c": 3, "d": 0}
        assert origins["mmu"][0] == "a"
        assert "b" in origins["t2i"]
        assert sorted(name for names in origins.values() for name in names) == ["a", "b", "c"]
        assert (kept, unexpected) == (["d"], [])


def test_one_result_is_taken_as_it_is() -> None:
    values, origins, kept, _ = loaded(result("mmu", "a", a=1, b=2, c=3, d=4))
    assert values == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert (origins, kept) == ({"mmu": ["a", "b", "c", "d"]}, [])


def test_the_untrained_must_be_equal() -> None:
    with pytest.raises(CheckpointError) as error:
        loaded(result("mmu", "a", a=1, c=3), result("t2i", "b", a=1, c=4))
    assert str(error.value).startswith("c was trained in neither mmu nor t2i, yet differs between them")
    assert "model.init_seed" in str(error.value)


def test_a_parameter_trained_twice_is_refused() -> None:
    with pytest.raises(CheckpointError) as error:
        loaded(result("mmu", "a", a=1), result("t2i", "a", a=1))
    assert str(error.value).startswith("a was trained both in mmu and in t2i; only one can be kept.")
    assert "stage.freeze" in str(error.value)


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CheckpointError) as error:
        loaded(StageResult("mmu", {"a": torch.zeros(3)}, frozenset("a")))
    assert str(error.value).startswith("a is (3,) in mmu but (2,) in this model; ")


def test_what_the_model_does_not_have_is_reported() -> None:
    model = Model()
    extra: dict[str, Tensor] = {f"x{i}": torch.zeros(1) for i in range(6)}
    report = load_results(model, [StageResult("mmu", {"a": torch.ones(2), **extra}, frozenset("a"))])
    assert report.lines() == [
        "1 parameters from mmu",
        "3 kept as initialised: b, c, d",
        "6 unexpected, not loaded: x0, x1, x2, x3 and 2 more",
    ]


def test_a_result_is_read_from_a_run(tmp_path: Path) -> None:
    state = {"state_dict": {"model.a": torch.ones(2)}, "stage": {"name": "mmu_pretrain", "trained": ["a"]}}
    folder = save(tmp_path / "checkpoints", 20, state)
    for path in (tmp_path, folder):
        read = StageResult.read(path, refuse)
        assert (read.origin, read.trained) == (str(path), frozenset("a"))
        assert torch.equal(read.weights["a"], torch.ones(2))


def test_the_best_is_kept_beside_the_last(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    remove_old(tmp_path, 2, newest=4, best=1)
    assert sorted(folder.name for folder in tmp_path.glob("step-*")) == [step_name(step) for step in (1, 3, 4)]


def test_a_checkpoint_is_known_by_name_and_hash(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    assert checkpoint_id(folder) == f"step-000000007 {hashlib.sha256((folder / STATE).read_bytes()).hexdigest()}"
    assert checkpoint_id(tmp_path / "step-000000008") == ""


def test_the_fingerprint_of_weights_sees_every_bit_and_place() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    own = weights_fingerprint(model)
    copy = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    copy.load_state_dict(model.state_dict())
    assert weights_fingerprint(copy) == own
    weight = copy[0].weight
    seen = {own}
    with torch.no_grad():
        weight[0, 0], weight[0, 1] = weight[0, 1].clone(), weight[0, 0].clone()
        seen.add(weights_fingerprint(copy))
        copy.load_state_dict(model.state_dict())
        weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(9.0))
        seen.add(weights_fingerprint(copy))
    seen.add(weights_fingerprint(copy.half()))
    assert len(seen) == 4


def test_the_fingerprint_of_long_weights_is_that_of_all_their_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.checkpoints.PIECE", 5)
    one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    other.load_state_dict(one.state_dict())
    assert weights_fingerprint(one) == weights_fingerprint(other)
    with torch.no_grad():
        flat = other.weight.view(-1)
        flat[:5], flat[5:10] = flat[5:10].clone(), flat[:5].clone()  # whole pieces change places
    assert weights_fingerprint(one) != weights_fingerprint(other)
