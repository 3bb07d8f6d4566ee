"""The verbs: ``python -m pipelines.<verb>``."""

import atexit
import os

from pipelines.run import ending

# Idle OpenMP threads sleep instead of spinning. Read when torch is loaded. On a machine that others use too, spinning
# made a training step five times slower (docs/experiments.md); alone on it, sleeping costs nothing measurable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before anything else registers: what is registered first is called last.
atexit.register(ending.leave)
