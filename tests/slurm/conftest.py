import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .cluster import Cluster
from .jobs import Jobs
from .packages import SlurmMissingError, find_slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes. With REQUIRE_SLURM set, as .ci/run does for root, a machine that cannot have them fails."""
    cluster: Cluster | None = None
    try:
        cluster = Cluster(tmp_path_factory.mktemp("slurm"), find_slurm())
        cluster.start()
    except SlurmMissingError as error:
        if os.environ.get("REQUIRE_SLURM"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    else:
        yield cluster
    finally:
        if cluster is not None:
            cluster.stop()


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    """Submits the project's scripts; the smoke configurations, with this interpreter."""
    environment = {f"{task.upper()}_CONFIG": f"configs/smoke_{task}.yaml" for task in ("mmu", "t2i", "unified")}
    environment |= {"OMNIMAMBA_ENV": sys.prefix, "RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1", "DOCTOR": "0"}
    yield Jobs(cluster, tmp_path, environment)
    cluster.run("scancel", "--quiet", "--full", "--user", str(os.getuid()), check=False)
    cluster.until(lambda: not cluster.run("squeue", "--noheader").strip(), "empty queue")


@pytest.fixture
def stand_in(jobs: Jobs, tmp_path: Path) -> Callable[[str], Path]:
    """Puts a shell script in the place of Python, so that a job takes no longer than Slurm itself.

    The script finds in $run the run folder, in $config the configuration; every start adds its rank and words to the
    file that this returns.
    """

    def make(body: str) -> Path:
        program, calls = tmp_path / "environment" / "bin" / "python", tmp_path / "calls"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(
            f'#!/bin/bash\nconfig=$3 run=${{@: -1}}; run=${{run#run.dir=}}\necho "$SLURM_PROCID $*" >>{calls}\n{body}\n'
        )
        program.chmod(0o755)
        jobs.environment["OMNIMAMBA_ENV"] = str(program.parents[1])
        return calls

    return make
