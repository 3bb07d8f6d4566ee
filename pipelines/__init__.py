"""The verbs: ``omnimamba VERB``, or ``python -m pipelines.<verb>``."""

import atexit
import os
import sys

from pipelines.run import ending

# Idle OpenMP threads sleep instead of spinning; torch reads this when it is loaded. On a shared machine, spinning made
# a training step five times slower (docs/experiments.md). On a machine of one's own, sleeping costs nothing measurable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Registered before anything else, because the first function to be registered is called last.
atexit.register(ending.leave)

if sys.argv[:1] == ["-m"]:  # Python is still looking for the module that it was told to run
    from pipelines.run.verbs import mistaken_module

    if message := mistaken_module(sys.orig_argv):
        print(message, file=sys.stderr)
        sys.exit(ending.UNUSABLE)
