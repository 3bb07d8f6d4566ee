"""Whether W&B's sweep engine is here, and the sweep files."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
ENGINE = Path(os.environ.get("SWEEPS_PYTHON") or ROOT / ".venv-sweeps/bin/python")

needs_engine = pytest.mark.skipif(
    not ENGINE.is_file() and not os.environ.get("REQUIRE_SWEEPS"), reason="no sweep engine here; run `make sweeps`"
)
"""With REQUIRE_SWEEPS set, as in .ci/run, a machine without the engine fails instead."""
