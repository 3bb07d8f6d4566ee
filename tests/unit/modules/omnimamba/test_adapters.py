"""Task LoRA: each adapter serves its own positions; merged and peft forms compute the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from modules.adapter_files import load_adapter, save_adapter
from modules.omnimamba.adapters import TaskLoraLinear
from modules.omnimamba.config import TASKS, LoraConfig

from .conftest import TINY, batch_of, build


@pytest.fixture
def layer() -> TaskLoraLinear:
    torch.manual_seed(0)
    return TaskLoraLinear(6, 5, LoraConfig(rank=2, alpha=6, dropout=0.0)).double()


def test_each_adapter_serves_its_own_positions(layer: TaskLoraLinear) -> None:
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    y = layer(x, (3, 4))
    for task, part in zip(TASKS, (slice(0, 3), slice(3, 7)), strict=True):
        A, B = layer.lora_A[task].weight, layer.lora_B[task].weight
        torch.testing.assert_close(y[:, part], x[:, part] @ layer.weight.T + 3 * (x[:, part] @ A.T @ B.T))
        torch.testing.assert_close(y[:, part], x[:, part] @ layer.merged(task).T)


def test_dropout_is_on_the_adapters_input_alone() -> None:
    layer = TaskLoraLinear(6, 5, LoraConfig(dropout=0.999)).train()
    x = torch.randn(1, 4, 6)
    torch.testing.assert_close(layer(x, (4, 0)), x @ layer.weight.T, atol=0.5, rtol=0)


def test_without_lora_the_weight_is_all(layer: TaskLoraLinear) -> None:
    plain = TaskLoraLinear(6, 5, None)
    x = torch.randn(1, 4, 6)
    assert torch.equal(plain(x, (1, 3)), x @ plain.weight.T)
    assert torch.equal(plain.merged("mmu"), plain.weight)


@pytest.mark.parametrize("task", TASKS)
def test_peft_loads_what_we_save(task: str, tmp_path: Path) -> None:
    model = build()
    save_adapter(model, task, tmp_path)
    plain = build(replace(TINY, lora="none"))
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "lora" not in name})
    peft = PeftModel.from_pretrained(plain, str(tmp_path))
    batch = batch_of()[task]
    torch.testing.assert_close(peft.base_model.model.logits(task, batch), model.logits(task, batch))


@pytest.mark.parametrize("task", TASKS)
def test_saved_adapters_load_again(task: str, tmp_path: Path) -> None:
    model, other = build(), build()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if f".{task}." in name:
                parameter.zero_()
    save_adapter(model, task, tmp_path)
    load_adapter(other, task, tmp_path)
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = build()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json does not exist"):
        load_adapter(model, "mmu", tmp_path)
    save_adapter(model, "mmu", tmp_path)
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        save_adapter(model, "mmu", tmp_path)
    with pytest.raises(ValueError, match="has r=2 and lora_alpha="):
        load_adapter(build(replace(TINY, adapters=replace(TINY.adapters, rank=3))), "mmu", tmp_path)
    with pytest.raises(ValueError, match="differ in 4 layers"):
        load_adapter(build(replace(TINY, n_layer=4)), "mmu", tmp_path)
    with pytest.raises(ValueError, match=r"is \(2, 16\) in"):
        load_adapter(build(replace(TINY, d_model=32)), "mmu", tmp_path)
    with pytest.raises(ValueError, match=r"model\.lora=none has no adapters"):
        save_adapter(build(replace(TINY, lora="none")), "mmu", tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "is null, expected an object"),
        ('{"r": 2}', "lora_alpha is missing"),
        ('{"r": "2", "lora_alpha": 4}', "r is '2', expected a whole number"),
        ("{", "is not valid JSON"),
    ],
)
def test_an_odd_configuration_of_an_adapter_is_named(tmp_path: Path, content: str, message: str) -> None:
    save_adapter(build(), "mmu", tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^adapter configuration .*adapter_config\.json.* {message}"):
        load_adapter(build(), "mmu", tmp_path)


def test_damaged_weights_of_an_adapter_are_named(tmp_path: Path) -> None:
    save_adapter(build(), "mmu", tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is a git-lfs pointer"):
        load_adapter(build(), "mmu", tmp_path)
