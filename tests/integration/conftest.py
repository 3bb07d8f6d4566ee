import subprocess
from pathlib import Path

import pytest

from datamodules.scenes.prepare import prepare_scenes
from pipelines.run.config import load

from .running import ENVIRONMENT, NO_EVALUATION, ROOT, UNIFIED, Train, command


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that keep the 3:48 of a step but make it cheap; their data are made here, once."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    overrides = [
        f"scenes.folder={folder}",
        "scenes.images=80",
        "scenes.val_images=4",
        "scenes.patch_size=8",
        "model.image_tokens=64",
        "model.n_layer=1",
        "tracking.wandb=disabled",
    ]
    config = load(ROOT / UNIFIED, overrides).scenes
    assert config is not None
    prepare_scenes(config, say=lambda _: None)
    return overrides


@pytest.fixture(scope="session")
def train(small: list[str]) -> Train:
    """Trains a configuration of the project with ``small`` and more overrides."""

    def run(config: str, folder: Path, *more: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        words = command(config, *small, *NO_EVALUATION, f"run.dir={folder}", *more)
        done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run
