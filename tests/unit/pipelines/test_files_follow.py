"""Files follow the run: wherever a verb is started, tokenizer and VQ are those of the weights, or it refuses."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from datamodules.scenes.prepare import PreparedPaths
from modules.checkpoints import STATE, commit, model_weights, read_facts, read_state
from modules.files import step_name
from modules.model_files import KEY, ModelFiles
from modules.omnimamba.llamagen import LlamaGenVQ
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import PatchKMeans
from modules.published import PublishedWeights, to_published
from pipelines import evaluate, export, generate, train
from pipelines.doctor import __main__ as doctor
from pipelines.doctor.checks import examine
from pipelines.run.compose import agree_with_stage
from pipelines.run.config import load
from pipelines.run.ranks import Ranks
from pipelines.run.trained import trained_config
from tests.unit.modules.omnimamba.test_llamagen import SMALL as SMALL_VQ
from tests.verbs import call

SHORT = ["data.micro_batch={mmu: 1, t2i: 1}", "tracking.wandb=disabled",
         *(f"evaluation.{key}=null" for key in ("pope", "gqa", "fid", "samples"))]  # fmt: skip
ONE, TWO = ["trainer.max_steps=1"], ["trainer.max_steps=2", "run.allow_changed=[trainer.max_steps]"]
MEASURED = "evaluation.speed={}"
UNHASHED = "was saved without the hash of its text tokenizer and VQ tokenizer"


def write_files(prepared: PreparedPaths, folder: Path, *, other: bool = False) -> None:
    """Both tokenizers, or others of the same names and sizes, in ``folder``/files."""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    words = json.loads(prepared.tokenizer.read_text())
    vq = PatchKMeans.load(prepared.vq)
    if other:
        vocabulary = words["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        vq = PatchKMeans(vq.codebook.flip(0), image_size=vq.image_size, patch_size=vq.patch_size)
    (folder / "files" / "tokenizer.json").write_text(json.dumps(words))
    vq.save(folder / "files" / "vq.safetensors")


@pytest.fixture(scope="module")
def once(finished_run: Path, prepared: PreparedPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration that names its files by relative paths, and its run of one step."""
    folder = tmp_path_factory.mktemp("project")
    write_files(prepared, folder)
    config = OmegaConf.load(finished_run / "config.yaml")
    config.model.tokenizer, config.model.vq = "files/tokenizer.json", "files/vq.safetensors"
    config.run.dir = ""
    OmegaConf.save(config, folder / "tiny.yaml")
    assert call(train, folder / "tiny.yaml", f"run.dir={folder / 'run'}", *SHORT, *ONE) == 0
    return folder


@pytest.fixture
def project(once: Path, tmp_path: Path) -> Path:
    """A copy of its own for every test; what the run wrote down names the files in the first one."""
    return Path(shutil.copytree(once, tmp_path / "project"))


@pytest.fixture
def elsewhere(prepared: PreparedPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which other files of the same names are."""
    folder = tmp_path / "elsewhere"
    write_files(prepared, folder, other=True)
    for file in ("tokenizer.json", "vq.safetensors"):
        shutil.copy(folder / "files" / file, folder / file)
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    monkeypatch.chdir(folder)
    return folder


def drawn(run: Path, out: Path, *words: str) -> bytes:
    assert call(generate, run, "text2image", "a red circle", "--out", out, "--force", *words) == 0
    return out.read_bytes()


def answered(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert call(generate, run, "describe", "red.png", "What is it?", "--max-new-tokens", 8, *words) == 0
    return capsys.readouterr().out


def without_hashes(run: Path, step: int = 1) -> None:
    """Make ``run`` as an earlier version left it: no hashes, no copies, paths as they were given."""
    for name in ("tokenizer.json", "vq.safetensors"):
        (run / name).unlink()
    checkpoint, new = run / "checkpoints" / step_name(step), run / "new"
    state = torch.load(checkpoint / STATE, weights_only=True)
    del state["run"][KEY]
    new.mkdir()
    torch.save(state, new / STATE)
    commit(new, checkpoint, step)
    config = OmegaConf.load(run / "config.yaml")
    config.model.tokenizer, config.model.vq = "files/tokenizer.json", "files/vq.safetensors"
    OmegaConf.save(config, run / "config.yaml")


def name_others(run: Path, key: str, path: Path) -> None:
    """As if the file that the run was trained with had been overwritten, and were too large to be kept."""
    for name in {"tokenizer": ["tokenizer.json"], "vq": ["vq.safetensors"]}[key]:
        (run / name).unlink()
    config = OmegaConf.load(run / "config.yaml")
    config.model[key] = str(path)
    OmegaConf.save(config, run / "config.yaml")


def test_a_run_knows_its_files_and_keeps_them(project: Path, once: Path, prepared: PreparedPaths) -> None:
    run = project / "run"
    hashes = ModelFiles.of(TextTokenizer(run / "tokenizer.json"), PatchKMeans.load(run / "vq.safetensors")).as_dict()
    assert read_facts(run / "checkpoints" / step_name(1))[KEY] == hashes
    assert json.loads((run / "provenance.json").read_text())["attempts"][0]["weights"] == hashes
    assert OmegaConf.load(run / "config.yaml").model.tokenizer == str(once / "files/tokenizer.json")


def test_from_another_folder_answer_and_picture_are_the_same(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = project / "run"
    here = drawn(run, elsewhere / "here.png"), answered(run, capsys)
    shutil.copy(elsewhere / "red.png", project)
    monkeypatch.chdir(project)
    assert (drawn(run, project / "there.png"), answered(run, capsys)) == here
    assert capsys.readouterr().err == ""


def test_a_moved_run_needs_none_of_the_files_it_was_trained_with(
    project: Path, elsewhere: Path, once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = drawn(project / "run", elsewhere / "a.png")
    moved = shutil.move(project / "run", elsewhere / "moved")
    name = Path(moved) / "config.yaml"
    name.write_text(name.read_text().replace(str(once), "/nowhere"))
    assert drawn(moved, elsewhere / "b.png") == expected
    assert call(train, name, *TWO) == 0
    assert "resuming from" in capsys.readouterr().out
    assert (Path(moved) / "tokenizer.json").is_file()


@pytest.mark.parametrize("key", ["tokenizer", "vq"])
@pytest.mark.parametrize("verb", ["generate", "evaluate", "export", "resume", "init_from", "check"])
def test_other_content_is_refused_by_every_verb(
    verb: str, key: str, project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = project / "run", "tokenizer.json" if key == "tokenizer" else "vq.safetensors"
    hashes = ModelFiles.of(TextTokenizer("tokenizer.json"), PatchKMeans.load(Path("vq.safetensors"))).as_dict()
    known = read_facts(run / "checkpoints" / step_name(1))[KEY]
    name_others(run, key, elsewhere / file)
    words: dict[str, tuple[ModuleType, list[object]]] = {
        "generate": (generate, [run, "text2image", "a red circle", "--out", elsewhere / "a.png"]),
        "evaluate": (evaluate, [run, MEASURED]),
        "export": (export, [run, elsewhere / "out"]),
        "resume": (train, [run / "config.yaml", *TWO]),
        "init_from": (train, [run / "config.yaml", f"run.dir={elsewhere / 'new'}", f"init_from=[{run}]",
                              "stage.name=mmu_pretrain"]),
        "check": (doctor, ["check", run / "config.yaml", f"run.dir={run}", "stage.name=mmu_pretrain"]),
    }  # fmt: skip
    module, given = words[verb]
    code = call(module, *given)
    told = capsys.readouterr()
    assert code == (1 if verb == "check" else 2)
    said = told.out if verb == "check" else told.err
    assert f"model.{key}={elsewhere / file} is not the " in said
    assert f"its hash is {hashes[key]}, but that one's is {known[key]}" in said
    assert sorted(path.name for path in elsewhere.glob("*out*")) == []


def test_a_kept_copy_that_was_changed_is_refused(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(elsewhere / "vq.safetensors", project / "run" / "vq.safetensors")
    assert call(generate, project / "run", "text2image", "a red circle") == 2
    assert f"model.vq={project / 'run' / 'vq.safetensors'} is not the VQ tokenizer of" in capsys.readouterr().err


def test_another_path_may_be_named_but_no_other_content(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = drawn(project / "run", elsewhere / "a.png")
    assert drawn(project / "run", elsewhere / "b.png", f"model.vq={project / 'files/vq.safetensors'}") == same
    assert call(generate, project / "run", "text2image", "a red circle", "model.vq=vq.safetensors") == 2
    assert f"model.vq={elsewhere / 'vq.safetensors'} is not the VQ tokenizer of" in capsys.readouterr().err


def test_a_question_needs_no_vq(project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = answered(project / "run", capsys)
    name_others(project / "run", "vq", elsewhere / "gone.safetensors")
    assert answered(project / "run", capsys) == expected
    assert call(generate, project / "run", "text2image", "a red circle") == 2
    assert "gone.safetensors does not exist" in capsys.readouterr().err


def test_questions_are_measured_without_a_vq(
    project: Path, elsewhere: Path, prepared: PreparedPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    name_others(project / "run", "vq", elsewhere / "gone.safetensors")
    files = {"folder": prepared.scenes / "pope" / "coco", "images": prepared.scenes / "val2014"}
    pope = ["evaluation.pope.data=scenes", *(f"evaluation.pope.{key}={path}" for key, path in files.items())]
    assert call(evaluate, project / "run", "--measures", "pope", *pope) == 0
    assert call(evaluate, project / "run", "--measures", "pope", "speed", *pope, MEASURED) == 2
    assert "gone.safetensors does not exist" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over_by_the_doctor_too(project: Path, elsewhere: Path) -> None:
    run = project / "run"
    newer = shutil.copytree(run / "checkpoints" / step_name(1), run / "checkpoints" / step_name(2))
    (newer / STATE).write_bytes((newer / STATE).read_bytes()[:5000])
    found = {verdict.name: verdict for verdict in examine(trained_config(run), Ranks())}
    assert found["same tokenizers"].state == "ok"


@pytest.mark.parametrize("facts", [{"config": None}, {"config": {"stage": []}}, {"config": {"stage": {"name": ["a"]}}}])
def test_odd_facts_of_an_earlier_stage_are_named(facts: dict[str, object], project: Path) -> None:
    with pytest.raises(ValueError, match="config of init_from=runs/a"):
        agree_with_stage(load(project / "run" / "config.yaml"), ModelFiles(), "runs/a", facts)


def test_a_run_without_hashes_is_taken_with_one_warning_and_hashed_at_its_next_save(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = project / "run"
    expected = drawn(run, elsewhere / "a.png")
    hashes = read_facts(run / "checkpoints" / step_name(1))[KEY]
    without_hashes(run)
    monkeypatch.chdir(project)  # where it was started; it did not write that down
    capsys.readouterr()
    assert drawn(run, elsewhere / "b.png") == expected
    told = capsys.readouterr().err
    assert told.count("WARNING") == told.count(UNHASHED) == 1
    assert f"model.tokenizer={project / 'files/tokenizer.json'}" in told
    assert call(export, run, project / "out") == 0
    assert json.loads((project / "out" / "export.json").read_text())[KEY] == hashes
    capsys.readouterr()
    assert call(train, run / "config.yaml", *TWO) == 0
    assert capsys.readouterr().err.count(UNHASHED) == 1
    assert read_facts(run / "checkpoints" / step_name(2))[KEY] == hashes
    assert {"tokenizer.json", "vq.safetensors"} < {path.name for path in run.iterdir()}
    drawn(run, elsewhere / "c.png")
    assert capsys.readouterr().err == ""


def test_a_run_of_an_earlier_version_finds_the_project_around_it(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it was made in the project, as the README does it, its relative paths count from there."""
    expected = drawn(project / "run", elsewhere / "a.png")
    without_hashes(project / "run")
    (project / "configs").mkdir()
    assert drawn(project / "run", elsewhere / "b.png") == expected
    assert f"model.vq={project / 'files/vq.safetensors'}" in capsys.readouterr().err


def test_an_export_holds_its_files_and_opens_anywhere(
    project: Path, elsewhere: Path, once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = drawn(project / "run", elsewhere / "a.png")
    assert call(export, project / "run", project / "out") == 0
    moved = Path(shutil.move(project / "out", elsewhere / "given"))
    shutil.rmtree(project)
    assert {path.name for path in moved.iterdir()} == {
        "README.md", "config.yaml", "export.json", "model.safetensors", "tokenizer.json", "vq.safetensors",
    }  # fmt: skip
    assert OmegaConf.load(moved / "config.yaml").model.vq == "vq.safetensors"
    assert drawn(moved, elsewhere / "b.png") == expected
    assert capsys.readouterr().err == ""
    facts = json.loads((moved / "export.json").read_text())
    (moved / "export.json").write_text(json.dumps({key: value for key, value in facts.items() if key != KEY}))
    assert drawn(moved, elsewhere / "c.png") == expected
    assert capsys.readouterr().err.count(UNHASHED) == 1


@pytest.mark.parametrize("file", ["tokenizer.json", "vq.safetensors"])
def test_an_export_with_another_file_is_refused(
    file: str, project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = project / "out"
    assert call(export, project / "run", out) == 0
    given = [out / "config.yaml", f"run.dir={elsewhere / 'new'}", f"pretrained={out}", "stage.name=unified_finetune"]
    shutil.copy(elsewhere / file, out / file)
    verbs = ((generate, [out, "text2image", "a red circle"]), (train, given), (evaluate, [*given, MEASURED]))
    for verb, words in verbs:
        assert call(verb, *words) == 2
        told = capsys.readouterr().err
        assert f"={out / file} is not the " in told
        assert "but that one's is" in told


def test_a_stage_that_did_not_draw_may_have_had_another_vq(project: Path, elsewhere: Path) -> None:
    words = [project / "tiny.yaml", *SHORT, *ONE]
    mmu = ["stage.name=mmu_pretrain", "model.vq=vq.safetensors", f"run.dir={elsewhere / 'mmu'}"]
    assert call(train, *words, *mmu) == 0
    both = f"init_from=[{elsewhere / 'mmu'}]"
    assert call(train, *words, both, f"run.dir={elsewhere / 'unified'}") == 0


def test_the_manifest_tells_the_vq_of_a_run_that_names_none(project: Path, elsewhere: Path) -> None:
    run = elsewhere / "run"
    assert call(train, project / "tiny.yaml", *SHORT, *ONE, "model.vq=", f"run.dir={run}") == 0
    known = read_facts(project / "run" / "checkpoints" / step_name(1))[KEY]
    assert read_facts(run / "checkpoints" / step_name(1))[KEY] == known
    assert call(generate, run, "text2image", "a red circle", "model.vq=vq.safetensors") == 2
    drawn(run, elsewhere / "a.png", f"model.vq={project / 'files/vq.safetensors'}")


@pytest.mark.parametrize("verb", ["train", "evaluate", "check"])
def test_a_published_checkpoint_with_another_vq_is_refused(
    verb: str, project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the message says which one made the codes of the data."""
    whole = LlamaGenVQ.from_weights
    monkeypatch.setattr(LlamaGenVQ, "from_weights", lambda origin, weights: whole(origin, weights, SMALL_VQ))
    recorded = load_file(Path(__file__).parents[1] / "reference" / "vq_weights.safetensors")
    language = model_weights(read_state(project / "run" / "checkpoints" / step_name(1)))
    weights = to_published(PublishedWeights(language, vq=recorded))
    save_file({name: value.clone() for name, value in weights.items()}, elsewhere / "omnimamba.safetensors")
    start = [project / "tiny.yaml", "pretrained=omnimamba.safetensors", f"run.dir={elsewhere / 'new'}", *SHORT]
    verbs: dict[str, tuple[ModuleType, list[object]]] = {
        "train": (train, start), "evaluate": (evaluate, [*start, MEASURED]), "check": (doctor, ["check", *start])
    }  # fmt: skip
    module, words = verbs[verb]
    assert call(module, *words) == (1 if verb == "check" else 2)
    told = capsys.readouterr()
    said = told.out if verb == "check" else told.err
    own = whole("x", recorded, SMALL_VQ)[0].fingerprint
    made = PatchKMeans.load(project / "files/vq.safetensors").fingerprint
    assert f"carries a VQ tokenizer of its own (hash {own}), which is not that of model.vq=" in said
    assert f"(hash {made}); the codes in data.t2i=" in said
    assert "were made with model.vq's. To these weights" in said
    assert "set model.vq=" in said
