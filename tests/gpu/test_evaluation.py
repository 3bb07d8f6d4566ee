"""Measures on a GPU: features as on a CPU, and the clock of the speed measure."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from modules.files import sha256
from modules.metrics.networks import load_network
from modules.metrics.protocols import PROTOCOLS
from modules.omnimamba.llamagen import exactly
from modules.timing import Clock
from tests.gpu.running import COMMON, Trainings
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


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_a_run_is_evaluated_at_its_end(strategy: str, trainings: Trainings, tmp_path: Path) -> None:
    """In deterministic mode, which refuses operations whose order of sums is not fixed."""
    words = [
        *(*COMMON, trainings.data, f"hardware.strategy={strategy}", "trainer.max_steps=1", f"run.dir={tmp_path}"),
        *("evaluation.speed={batch: 2, warmup: 1, batches: 3}", "evaluation.fail_fast=true"),
        *("evaluation.pope.limit=4", "evaluation.gqa.limit=4", "evaluation.fid.n=4", "evaluation.samples.n=2"),
    ]
    done = subprocess.run(command(UNIFIED, *words), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    results = json.loads((tmp_path / "records" / "step-000000001" / "results.json").read_text())
    speed = results["speed_mini"]
    assert min(speed["metrics"][key] for key in ("img_per_s", "prefill_s", "tokens_s", "vq_s", "peak_mem")) > 0
    assert speed["metrics"]["peak_mem/reserved"] >= speed["metrics"]["peak_mem"]
    assert speed["protocol"]["device"] == torch.cuda.get_device_name()
    assert "fd_4" in results["fd_pool"]["metrics"]
    assert len(results) == 5, sorted(results)
