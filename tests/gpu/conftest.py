import pytest

from tests.gpu.running import Trainings


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings.prepared(tmp_path_factory.mktemp("data"))
