"""What is refused before any training starts, and what a model starts from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from datamodules.scenes.prepare import PreparedPaths
from datamodules.sources.pretokenized import PretokenizedConfig, build_pretokenized
from modules.adapter_files import AdapterFolders, save_adapter
from modules.files import sha256
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.vq import PatchKMeans
from pipelines.run.compose import build_model, build_tokenizer, build_vq, weight_fingerprints
from pipelines.run.config import ConfigError, load
from pipelines.run.data import build_data
from pipelines.run.fit import fit
from pipelines.run.hardware import HardwareConfig, check_hardware
from tests.mamba2_files import mamba2_weights


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_hardware(HardwareConfig(accelerator="cpu", devices=8))
    with pytest.raises(ConfigError) as error:
        check_hardware(HardwareConfig(accelerator="gpu", devices=8))
    assert str(error.value) == (
        "hardware.accelerator=gpu with hardware.devices=8, but this machine has 1 GPUs; "
        "use hardware.accelerator=cpu or a machine that has them"
    )


def test_a_gpu_configuration_on_a_cpu_machine_leaves_nothing_behind(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    config = load(run_folder / "config.yaml", ["hardware.accelerator=gpu", f"run.dir={tmp_path / 'new'}"])
    with pytest.raises(ConfigError, match="this machine has 0 GPUs"):
        fit(config)
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_must_fit_into_the_embedding(finished_run: Path) -> None:
    model = load(finished_run / "config.yaml").model
    size = len(build_tokenizer(model))
    with pytest.raises(ConfigError) as error:
        build_tokenizer(replace(model, vocab_size=16))
    right = size + -size % 16
    assert f"has {size} ids with the special tokens, but model.vocab_size=16; set it to {right}" in str(error.value)
    build_tokenizer(replace(model, vocab_size=right))


def test_codes_must_be_those_of_the_model(finished_run: Path) -> None:
    model = load(finished_run / "config.yaml").model
    assert isinstance(build_vq(model), PatchKMeans)
    assert build_vq(replace(model, vq="")) is None
    with pytest.raises(ConfigError, match=r"model\.vq=gone\.safetensors does not exist; .* or set model\.vq='' if"):
        build_vq(replace(model, vq="gone.safetensors"))
    with pytest.raises(ConfigError) as error:
        build_vq(replace(model, image_vocab=17))
    assert str(error.value) == f"model.image_vocab=17, but the VQ tokenizer {model.vq} has 16; they must be equal"
    with pytest.raises(ConfigError, match=r"model\.image_tokens=15, but the VQ tokenizer .* has 16"):
        build_vq(replace(model, image_tokens=15))


def test_a_model_starts_from_seed_and_names_alone(finished_run: Path) -> None:
    config = load(finished_run / "config.yaml")
    lines: list[str] = []
    torch.manual_seed(1)
    first = build_model(config, report=lines.append).state_dict()
    torch.manual_seed(2)
    second = build_model(config, report=lines.append).state_dict()
    other = build_model(replace(config, model=replace(config.model, init_seed=1)), report=lines.append).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["text_embedding.weight"], other["text_embedding.weight"])
    assert lines == []


def test_a_model_starts_from_pretrained_weights(finished_run: Path, tmp_path: Path) -> None:
    config = load(finished_run / "config.yaml")
    source = OmniMamba(config.model)
    initialise(source, 7)
    save_file(mamba2_weights(source.state_dict()), tmp_path / "model.safetensors")
    lines: list[str] = []
    start = replace(config, pretrained=str(tmp_path))
    model = build_model(start, report=lines.append)
    assert torch.equal(model.text_embedding.weight, source.text_embedding.weight)
    assert torch.equal(model.mmu_positions, build_model(config, report=lines.append).mmu_positions)
    assert "tensors from" in lines[0]
    file = tmp_path / "model.safetensors"
    assert weight_fingerprints(start, model, resumed=False) == {f"pretrained/{file.name}": sha256(file)}
    assert weight_fingerprints(start, model, resumed=True) == {}


def test_a_model_starts_from_peft_adapters_of_one_task(finished_run: Path, tmp_path: Path) -> None:
    config = load(finished_run / "config.yaml")
    source = OmniMamba(config.model)
    initialise(source, 7)
    save_adapter(source, "mmu", tmp_path / "mmu")
    lines: list[str] = []
    start = replace(config, pretrained_adapters=AdapterFolders(mmu=str(tmp_path / "mmu")))
    model, plain = build_model(start, report=lines.append), build_model(config, report=lines.append)
    loaded, of_source, of_plain = (dict(each.named_parameters()) for each in (model, source, plain))
    for name, value in loaded.items():
        assert torch.equal(value, of_source[name] if ".mmu." in name else of_plain[name]), name
    assert lines == [f"the mmu adapters from {tmp_path / 'mmu'}"]
    digest = sha256(tmp_path / "mmu" / "adapter_model.safetensors")
    assert weight_fingerprints(start, model, resumed=False) == {"pretrained_adapters/mmu": digest}
    assert weight_fingerprints(start, model, resumed=True) == {}


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hardware\.threads=100000, but this machine has \d+ CPU cores"):
        check_hardware(HardwareConfig(threads=100000))


def test_shards_of_another_vq_tokenizer_are_refused(prepared: PreparedPaths, finished_run: Path) -> None:
    config = load(finished_run / "config.yaml")
    data = replace(config.data, t2i=str(prepared.t2i), mmu=str(prepared.mmu_instruct))
    config, tokenizer = replace(config, data=data), build_tokenizer(config.model)
    right = build_vq(config.model)
    assert isinstance(right, PatchKMeans)
    build_data(config, tokenizer, right)
    other = PatchKMeans(right.codebook.flip(0), image_size=right.image_size, patch_size=right.patch_size)
    message = rf"made with VQ tokenizer patch_kmeans \({right.fingerprint}\).* is patch_kmeans \({other.fingerprint}\)"
    with pytest.raises(ConfigError, match=message):
        build_data(config, tokenizer, other)


def test_shards_whose_vq_tokenizer_is_not_known_are_warned_about(
    prepared: PreparedPaths, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(finished_run / "config.yaml")
    right, tokenizer = build_vq(config.model), build_tokenizer(config.model)
    assert right is not None
    sizes = {"tokens_per_image": right.tokens_per_image, "codebook_size": right.codebook_size}
    lines = [json.dumps({"captions": ["a"], "tokens": [n] * right.tokens_per_image}) + "\n" for n in range(3)]
    (tmp_path / "t2i.jsonl").write_text("".join(lines))
    for vq, warned in (("", True), (config.model.vq, False)):
        made = PretokenizedConfig(
            annotations=str(tmp_path / "t2i.jsonl"), out=str(tmp_path / f"{warned}"), processes=1, vq=vq, **sizes
        )
        data = replace(config.data, t2i=str(build_pretokenized(made)), mmu=str(prepared.mmu_instruct))
        build_data(replace(config, data=data), tokenizer, right)
        assert ("the VQ tokenizer that made the codes in" in capsys.readouterr().err) == warned
    smaller = PatchKMeans(right.codebook[:-1], image_size=right.image_size, patch_size=right.patch_size)
    unknown = replace(data, t2i=str(tmp_path / "True" / "manifest.json"))
    with pytest.raises(ConfigError, match=r"made with VQ tokenizer unknown \(None\), but model\.vq"):
        build_data(replace(config, data=unknown), tokenizer, smaller)
