"""Submits jobs and follows them."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from .cluster import Cluster

ROOT = Path(__file__).parents[2]
SMALL = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=4000", "--time=60")
"""A job of one rank on each node, instead of eight."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class Jobs:
    """Where jobs are submitted and what they find in their environment."""

    cluster: Cluster
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def submit(self, script: str, *overrides: str, options: tuple[str, ...] = SMALL, cwd: Path = ROOT) -> "Job":
        """``sbatch OPTIONS slurm/SCRIPT OVERRIDES``, from the repository's root."""
        log = f"--output={self.folder}/%x-%j.log"
        words = ["sbatch", "--parsable", log, *options, str(ROOT / "slurm" / script), *overrides]
        return Job(self, self.cluster.run(*words, cwd=cwd, **self.environment).strip())


@dataclass(frozen=True)
class Job:
    """One job, or one element of an array: ``Job(jobs, "7_1")``."""

    jobs: Jobs
    id: str

    def element(self, number: int) -> "Job":
        """One job of an array."""
        return Job(self.jobs, f"{self.id}_{number}")

    def fields(self) -> dict[str, str]:
        """What Slurm knows of it."""
        shown = self.jobs.cluster.run("scontrol", "--oneliner", "show", "job", self.id)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    @property
    def state(self) -> str:
        """As Slurm names it."""
        return self.fields()["JobState"]

    @property
    def restarts(self) -> int:
        """How often it was requeued."""
        return int(self.fields()["Restarts"])

    @property
    def log(self) -> str:
        """What it and its ranks said, in all of its starts."""
        path = Path(self.fields()["StdOut"])
        return path.read_text(errors="replace") if path.is_file() else ""

    def wait(self, *states: str, seconds: float = 120) -> None:
        """Wait until it is in one of ``states``; that it ended in another is an error."""
        deadline = time.monotonic() + seconds
        while (state := self.state) not in states:
            assert state not in ENDED, f"job {self.id} is {state}\n{self.log}"
            assert time.monotonic() < deadline, f"job {self.id} is still {state}\n{self.log}"
            time.sleep(0.1)

    def signal(self, name: str, *how: str) -> None:
        """Send a signal to its ranks, or with ``--batch`` to its script."""
        self.jobs.cluster.run("scancel", *how, f"--signal={name}", self.id)

    def release(self, restarts: int = 1) -> None:
        """Start the job without Slurm's two minutes of delay, once it was requeued so many times at least."""
        self.jobs.cluster.until(lambda: self.restarts >= restarts or self.state in ENDED, f"requeue {restarts}", 120)
        self.wait("PENDING")
        time.sleep(2.1)  # in the second of the requeue Slurm would revoke the job's credential
        self.jobs.cluster.run("scontrol", "update", f"JobId={self.id}", "StartTime=now")

    def again(self, seconds: float = 120) -> None:
        """Let the requeued job run to its end."""
        self.release()
        self.wait("COMPLETED", seconds=seconds)
