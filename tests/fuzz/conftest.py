"""The finished run and the prepared scenes of the pipelines' tests are the good files that are broken here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the library is imported, which reads it then

from tests.unit.pipelines.conftest import finished_run, prepared

__all__ = ["finished_run", "prepared"]
