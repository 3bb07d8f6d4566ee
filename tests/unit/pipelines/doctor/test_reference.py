"""`doctor reference` passes on the recorded numbers of the published model, and only on them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.doctor.reference import compare_with_reference

RECORDED = Path(__file__).parents[2] / "reference"


def test_the_model_computes_what_the_published_one_does() -> None:
    comparison = compare_with_reference(RECORDED / "reference.json")
    assert comparison.passed, "\n".join(comparison.lines())
    assert {name.split(".")[0] for name, _, _ in comparison.rows} == {"mmu", "t2i"}
    assert len(comparison.rows) == 18


@pytest.mark.parametrize(
    ("stem", "rows"),
    [
        ("vision", ["dino_input", "siglip_input", "dino_features", "siglip_features", "fused"]),
        ("vq", ["codes", "quantized", "decoded"]),
    ],
)
def test_the_encoders_compute_what_the_published_ones_do(stem: str, rows: list[str]) -> None:
    comparison = compare_with_reference(RECORDED / f"{stem}.json")
    assert comparison.passed, "\n".join(comparison.lines())
    assert [name for name, _, _ in comparison.rows] == rows


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", ["t2i.logits", "mmu.loss", "t2i.grad.backbone.layers.0.mixer.A_log"])
@pytest.mark.parametrize("spoil", [1.01, float("nan")])
def test_a_number_out_of_tolerance_fails(copy: Path, name: str, spoil: float) -> None:
    tensors = load_file(copy / "reference_tensors.safetensors")
    tensors[name] = tensors[name] * spoil
    save_file(tensors, copy / "reference_tensors.safetensors")
    comparison = compare_with_reference(copy / "reference.json")
    assert not comparison.passed
    assert [row for row, error, allowed in comparison.rows if not error <= allowed] == [name]
    assert comparison.lines()[-1] == "1 of 18 above tolerance"


@pytest.mark.parametrize(
    ("stem", "name", "failing"),
    [
        ("vision", "dino_features", ["dino_features"]),
        ("vision", "siglip_input", ["siglip_input"]),
        ("vision", "fused", ["fused"]),
        ("vq", "decoded", ["decoded"]),
        ("vq", "quantized", ["quantized"]),
        ("vq", "codes", ["codes"]),
    ],
)
def test_an_encoders_number_out_of_tolerance_fails(copy: Path, stem: str, name: str, failing: list[str]) -> None:
    tensors = load_file(copy / f"{stem}_tensors.safetensors")
    tensors[name] = tensors[name] * 2 if name == "codes" else tensors[name] * 1.001
    save_file(tensors, copy / f"{stem}_tensors.safetensors")
    comparison = compare_with_reference(copy / f"{stem}.json")
    assert [row for row, error, allowed in comparison.rows if not error <= allowed] == failing


@pytest.mark.parametrize("sizes", ['{"width": 3}', '{"dino": {}, "codebook": 3}'])
def test_sizes_that_do_not_tell_what_was_recorded_are_refused(copy: Path, sizes: str) -> None:
    (copy / "vq.json").write_text(sizes)
    with pytest.raises(ValueError, match="exactly one of d_model, dino, codebook must be among its keys, which are"):
        compare_with_reference(copy / "vq.json")


def test_other_ids_fail_with_exit_code_1(copy: Path) -> None:
    tensors = load_file(copy / "reference_tensors.safetensors")
    tensors["mmu.greedy_text_ids"] = torch.zeros_like(tensors["mmu.greedy_text_ids"])
    save_file(tensors, copy / "reference_tensors.safetensors")
    command = [sys.executable, "-m", "pipelines.doctor", "reference", str(copy / "reference.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mmu.greedy_text_ids" in done.stdout
    assert "FAILED" in done.stdout


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "reference_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"reference_weights\.safetensors does not exist"):
        compare_with_reference(copy / "reference.json")
