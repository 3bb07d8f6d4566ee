"""Nothing is tuned in these tests: mamba_ssm would time dozens of configurations of each kernel for each shape."""

import pytest

from modules.omnimamba.kernels import choose_deterministic
from tests.gpu.running import Trainings

choose_deterministic()  # before anything imports mamba_ssm


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings.prepared(tmp_path_factory.mktemp("data"))
