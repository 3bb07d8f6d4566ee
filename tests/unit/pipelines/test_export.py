"""Exported weights come back the same, under every form."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, Mamba2ForCausalLM

from callbacks.measures.records import write_result
from modules import exports
from modules.checkpoints import STATE, CheckpointError, commit
from modules.files import step_name
from modules.omnimamba.adapters import segments_of
from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.llamagen import LlamaGenVQ
from modules.omnimamba.llamagen_layers import LlamaGenConfig
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.vision import DinoSiglip
from modules.published import from_published
from modules.weight_files import read_weights
from pipelines import export as export_verb
from pipelines.export import FORMS, export
from pipelines.run.trained import Trained, load_trained, trained_config
from tests.unit.modules.omnimamba.recorded import published_shapes
from tests.verbs import call


@pytest.fixture
def adapted_run(run_folder: Path) -> Path:
    """The run with adapters that do something: untrained ones add nothing."""
    checkpoint = run_folder / "checkpoints" / "step-000000020"
    state = torch.load(checkpoint / STATE, weights_only=True)
    for name, value in state["state_dict"].items():
        if "lora_B" in name:
            value.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    temporary = checkpoint.with_name("new")
    temporary.mkdir()
    torch.save(state, temporary / STATE)
    commit(temporary, checkpoint, 20)
    return run_folder


def logits(trained: Trained, task: str) -> Tensor:
    """Of one sequence of random content."""
    config, generator = trained.config.model, torch.Generator().manual_seed(3)
    ids = torch.randint(0, 500, (1, 20), generator=generator)
    if task == "t2i":
        codes = torch.randint(0, config.image_vocab, (1, config.image_tokens), generator=generator)
        return trained.model.logits("t2i", {"caption_ids": ids, "image_ids": codes}).detach()
    features = torch.randn(1, config.vision.patches, config.vision.width, generator=generator)
    return trained.model.logits("mmu", {"features": features, "input_ids": ids}).detach()


@pytest.mark.parametrize("task", ["mmu", "t2i"])
def test_every_form_computes_what_the_run_does(adapted_run: Path, tmp_path: Path, task: str) -> None:
    out = tmp_path / "out"
    export(adapted_run, out, FORMS)
    run, whole, merged = (load_trained(path) for path in (adapted_run, out, out / "merged" / task))
    assert (whole.step, whole.folder, whole.config.model.tokenizer) == (20, out, str(out / "tokenizer.json"))
    assert whole.model.state_dict().keys() == run.model.state_dict().keys()
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    assert merged.config.model.lora == "none"
    torch.testing.assert_close(logits(merged, task), logits(run, task), rtol=1e-5, atol=1e-6)
    other = "mmu" if task == "t2i" else "t2i"
    assert (logits(merged, other) - logits(run, other)).abs().max() > 1e-3  # the other task's adapter is not in it


@pytest.mark.parametrize("task", ["mmu", "t2i"])
def test_peft_itself_gives_the_merged_weights(adapted_run: Path, tmp_path: Path, task: str) -> None:
    out = tmp_path / "out"
    export(adapted_run, out, ("adapters", "merged"))
    assert not (out / "model.safetensors").exists()
    base = load_trained(out / "merged" / task).model
    plain = load_trained(adapted_run).model.state_dict()
    base.load_state_dict({name: plain[name] for name in base.state_dict()})
    for block in base.backbone.layers:  # peft adapts plain linear layers
        linear = nn.Linear(*reversed(block.mixer.in_proj.weight.shape), bias=False)
        linear.weight = block.mixer.in_proj.weight
        block.mixer.in_proj = linear
    by_peft = PeftModel.from_pretrained(base, str(out / "adapters" / task)).merge_and_unload().state_dict()
    merged = from_published(load_file(out / "merged" / task / "model.safetensors")).language
    assert by_peft.keys() == merged.keys()
    for name, value in by_peft.items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)


def test_each_form_is_told_before_it_is_written(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr("pipelines.run.counting.PieceProgress.show", lambda _, *piece: told.append(piece))
    assert call(export_verb, run_folder, tmp_path / "out", "--forms", "model", "adapters") == 0
    assert told == [("read the weights", 0, 3), ("write the form model", 1, 3), ("write the form adapters", 2, 3)]


def test_transformers_loads_the_language_model(adapted_run: Path, tmp_path: Path) -> None:
    export(adapted_run, tmp_path / "out", ("transformers",))
    run, folder = load_trained(adapted_run), tmp_path / "out" / "transformers"
    peer, missing = Mamba2ForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(missing.values())
    ids = torch.randint(0, 500, (2, 40), generator=torch.Generator().manual_seed(4))
    hidden = run.model.backbone(run.model.text_embedding(ids), segments_of("mmu", 40))
    torch.testing.assert_close(peer(ids).logits, run.model.head("mmu", hidden), rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Is there a red circle in the image?"
    assert tokenizer(text)["input_ids"] == run.tokenizer.encode(text)
    assert peer.config.eos_token_id == run.tokenizer.end_of_text


def test_transformers_has_one_epsilon(adapted_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.norm_eps=1e-05 and model\.gated_norm_eps=0\.01; leave out the form"):
        export(adapted_run, tmp_path / "out", ("transformers",), ["model.gated_norm_eps=0.01"])
    assert list(tmp_path.glob("*out*")) == []


def test_the_card_says_what_it_is_and_what_was_measured(run_folder: Path, tmp_path: Path) -> None:
    export(run_folder, tmp_path / "plain", ("model", "adapters"))
    card = (tmp_path / "plain" / "README.md").read_text()
    assert card.startswith("---\ntags: [omnimamba, mamba2]\n---\n\n# tiny\n")
    assert "It answers questions about pictures and draws captions." in card
    assert "after step 20 of stage unified_finetune" in card
    assert "Nothing was measured at this step." in card
    assert "adapters in peft's format" in card
    assert "Mamba2ForCausalLM" not in card
    assert str(run_folder.parent) not in card
    result = {"metrics": {"f1_macro": 0.75}, "standard_errors": {}, "baselines": {}, "protocol": {"n": 900}}
    write_result(run_folder / "records" / step_name(20), "pope_style", result)
    export(run_folder, tmp_path / "measured")
    assert "| pope_style | f1_macro | 0.750 | – | – | 900 |" in (tmp_path / "measured" / "README.md").read_text()


def test_what_is_exported_is_pretrained_for_the_next(adapted_run: Path, tmp_path: Path) -> None:
    export(adapted_run, tmp_path / "out")
    trained = load_trained(tmp_path / "out" / "config.yaml", [f"pretrained={tmp_path / 'out'}"])
    assert torch.equal(logits(trained, "t2i"), logits(load_trained(adapted_run), "t2i"))


def test_with_encoders_the_names_and_shapes_are_exactly_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = published_shapes()
    vision = VisionConfig(kind="dino_siglip", image_size=384, patch_size=14)
    with torch.device("meta"):
        model, vq = OmniMamba(ModelConfig(vision=vision)), LlamaGenVQ(LlamaGenConfig())
    vits = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items() if "featurizer" in name}
    monkeypatch.setattr(DinoSiglip, "published_weights", lambda _: from_published(vits).vision)
    found = exports.all_weights(model, vq, encoders=True)
    assert {name: tuple(value.shape) for name, value in found.items()} == shapes


def test_encoders_of_other_kinds_are_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this run has model\.vision\.kind=patches and VQ tokenizer patch_kmeans"):
        export(run_folder, tmp_path / "out", encoders=True)
    assert list(tmp_path.glob("*out*")) == []


def test_an_existing_folder_is_left_alone(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match=r"out exists; name a folder that does not"):
        export(run_folder, tmp_path / "out")


def test_a_full_disk_is_told_and_nothing_is_left(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_weights: object, path: Path, _metadata: object) -> None:
        path.write_bytes(b"some")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(exports, "save_file", full)
    with pytest.raises(
        ValueError, match=r"out could not be written: .*No space left on device.*; make room, or name a"
    ):
        export(run_folder, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_an_export_runs_on_what_the_run_runs_on(run_folder: Path, tmp_path: Path) -> None:
    """It is written on a CPU, and the run may have been on a machine with more cores."""
    file = run_folder / "config.yaml"
    text = file.read_text().replace("accelerator: cpu", "accelerator: gpu").replace("threads: 0", "threads: 100000")
    file.write_text(text.replace("precision: float32", "precision: bf16"))
    export(run_folder, tmp_path / "out")
    config = trained_config(tmp_path / "out")
    assert (config.hardware.accelerator, config.trainer.precision) == ("gpu", "bf16")
    assert config.hardware.threads == 100000


def test_what_is_merged_says_for_which_task(
    adapted_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(adapted_run, tmp_path / "out", ("model", "merged"))
    load_trained(tmp_path / "out")
    assert capsys.readouterr().err == ""
    load_trained(tmp_path / "out" / "merged" / "mmu")
    assert "merged/mmu has only the mmu adapters folded in" in capsys.readouterr().err


def test_a_damaged_export_is_refused(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(run_folder, out)
    facts = json.loads((out / "export.json").read_text())
    assert (facts["run"], facts["step"], facts["merged"]) == ("tiny", 20, None)
    with safe_open(str(out / "model.safetensors"), framework="pt") as file:
        assert "llm_backbone.mamba.img_head.weight" in file.keys()  # noqa: SIM118
    weights = read_weights(out)
    save_file(weights | {"llm_backbone.mamba.backbone.norm_f.weight": torch.zeros(16)}, out / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing or not what export\.json says"):
        load_trained(out)
    (out / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a git-lfs pointer, .* `git lfs pull`.*; export"):
        load_trained(out)
    for content, message in (
        ("{}", "files is missing"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps(facts | {"step": "20"}), "step is '20', expected a whole number"),
        (json.dumps(facts | {"files": {}}), "'model.safetensors'"),
    ):
        (out / "export.json").write_text(content)
        with pytest.raises(CheckpointError, match=rf"exported folder .*out cannot be read \(.*{message}.*\); export"):
            load_trained(out)


def test_a_disk_that_loses_bits_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "save_file", lambda weights, path, _: save_file({"a": weights["a"] + 1}, path))
    with pytest.raises(CheckpointError, match="reads back differently from what was written"):
        exports.write({"a": torch.zeros(2)}, tmp_path, {})


def test_a_model_without_adapters_has_none_to_merge() -> None:
    with torch.device("meta"):
        model = OmniMamba(ModelConfig(n_layer=1, lora="none"))
    with pytest.raises(ValueError, match=r"model\.lora=none has no adapters to fold in"):
        exports.merged(model, "mmu")
