"""Measures on a GPU: features as on a CPU, and the clock of the speed measure."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from callbacks.speed import Clock
from modules.files import sha256
from modules.metrics.networks import load_network
from modules.metrics.protocols import PROTOCOLS
from modules.omnimamba.llamagen import exactly
from pipelines.config import load
from pipelines.scenes import prepare_scenes
from tests.integration.running import ROOT, UNIFIED, command

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_features_are_those_of_a_cpu(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.AdaptiveAvgPool2d(1))
    torch.jit.script(layers).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    images = torch.randint(0, 256, (4, 3, 256, 256), dtype=torch.uint8)
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        network = load_network("ours", tmp_path / "net.pt", device, sha256(tmp_path / "net.pt"))
        with exactly(device):
            found.append(network(PROTOCOLS[name].network_input(images.to(device))).cpu())
    # float32 sums in another order; TF32 would be off by 1e-4
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=2e-5)


def test_marks_lie_on_the_gpus_time_axis() -> None:
    clock, x = Clock(torch.device("cuda")), torch.ones(4096, 4096, device="cuda")
    clock.mark()
    for _ in range(20):
        x = x @ x / 4096
    clock.mark()
    clock.mark()
    work, nothing = clock.seconds()
    assert work > nothing >= 0


def test_speed_of_a_run(tmp_path: Path) -> None:
    data = [f"scenes.folder={tmp_path / 'scenes'}", "scenes.images=80", "scenes.val_images=4", "scenes.patch_size=8"]
    config = load(ROOT / UNIFIED, data).scenes
    assert config is not None
    prepare_scenes(config, say=lambda _: None)
    others = [f"evaluation.{task}=null" for task in ("pope", "gqa", "samples")]
    words = [
        *others,
        "evaluation.speed={batch: 2, warmup: 1, batches: 3}",
        "evaluation.fid.n=4",
        "model.image_tokens=64",
    ]
    words += [
        "hardware.accelerator=gpu",
        "trainer.max_steps=1",
        "trainer.deterministic=true",  # which refuses operations whose order of sums is not fixed
        "tracking.wandb=disabled",
        f"run.dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        command(UNIFIED, *data, *words), cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    results = json.loads((tmp_path / "run" / "records" / "step-000000001" / "results.json").read_text())
    metrics = results["speed_mini"]["metrics"]
    assert min(metrics[key] for key in ("img_per_s", "prefill_s", "tokens_s", "vq_s", "peak_mem")) > 0
    assert metrics["peak_mem/reserved"] >= metrics["peak_mem"]
    assert results["speed_mini"]["protocol"]["device"] == torch.cuda.get_device_name()
    assert "fd_4" in results["fd_pool"]["metrics"]
