"""The verbs: ``python -m pipelines.<verb>``."""

import atexit
import os

from pipelines.run import ending

# Idle OpenMP threads sleep instead of spinning; torch reads this when it is loaded. On a shared machine, spinning made
# a training step five times slower (docs/experiments.md). On a machine of one's own, sleeping costs nothing measurable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Registered before anything else, because the first function to be registered is called last.
atexit.register(ending.leave)
