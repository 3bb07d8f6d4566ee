"""Walks through a page: runs its commands one after the other in the folder of a clone, on stand-ins."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points, metadata
from pathlib import Path

from tests.pages import ROOT
from tests.verbs import call

from .published_files import PublishedFiles

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "job",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "node",
    "SLURM_NTASKS_PER_NODE": "1",
}
PROGRAMS = {
    "bin/sbatch": 'echo "$*" >>submitted',
    "bin/scontrol": "echo node",
    "bin/srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    ".venv/bin/python": '(IFS=$\'\\t\'; echo "$*") >>started; run=${@: -1}; touch "${run#run.dir=}/COMPLETE"',
}
"""Stand-ins for Slurm's programs, and for Python inside of a job: it notes how it is started."""


def make_programs(clone: Path) -> None:
    """Write `PROGRAMS` into the folder of a clone."""
    for name, body in PROGRAMS.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (clone / name).chmod(0o755)


class Walk:
    """Runs commands in the folder of a clone: verbs in this process, batch scripts on stand-ins of Slurm's programs.

    What would download, install or set up is not run: the stand-ins of the files named are made, and the rest is looked
    at. The current folder must be the clone's.
    """

    def __init__(self, clone: Path, files: PublishedFiles) -> None:
        self.clone, self.files = clone, files
        self.done: list[str] = []

    def __call__(self, command: str) -> None:
        """Run ``command``."""
        words = shlex.split(command)
        assert words[0] not in ("hf", "torchrun") or entry_points(group="console_scripts", name=words[0])
        if "-m" in words:
            verb = words.index("-m") + 1
            self._verb(words[verb], *words[verb + 1 :])
        else:
            kinds: dict[str, Callable[..., None]] = {
                "hf": self._fetch,
                "sbatch": self._batch,
                "bash": self._bash,
                "make": partial(self._looks, "make", "-n"),
                "source": lambda file: None,
                "pip": self._installs,
            }
            kinds[words[0]](*words[1:])
        self.done.append(command)

    def _verb(self, name: str, *words: str) -> None:
        more = ["processes=1"] if name == "pipelines.prepare" and any("=" in word for word in words) else []
        module = import_module(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)
        assert call(module, *words, *more) == 0, f"{name} {' '.join(words)}"

    def _fetch(self, what: str, repository: str, name: str, option: str, folder: str) -> None:
        assert (what, option) == ("download", "--local-dir")
        self.files.fetch(name, repository, self.clone / folder)

    def _installs(self, *words: str) -> None:
        extra = re.fullmatch(r"\.\[(\w+)\]", words[-1])
        assert extra
        assert extra[1] in metadata("omnimamba-pipeline").get_all("Provides-Extra", [])

    def _looks(self, *words: str) -> None:
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)

    def _bash(self, *words: str, **environment: str) -> None:
        given = {**os.environ, **SLURM, "PATH": f"{self.clone}/bin:{os.environ['PATH']}", **environment}
        done = subprocess.run(["bash", *words], cwd=self.clone, env=given, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def _batch(self, script: str, *words: str) -> None:
        """Run the script of each element, then the verbs that it has started."""
        tasks = re.search(r"#SBATCH --array=0-(\d+)", (self.clone / script).read_text())
        for task in range(int(tasks[1]) + 1 if tasks else 1):
            self._bash(script, *words, SLURM_ARRAY_TASK_ID=str(task), SLURM_SUBMIT_DIR=str(self.clone))
            started = (self.clone / "started").read_text().splitlines()
            (self.clone / "started").unlink()
            assert [line.split("\t")[1] for line in started] == ["pipelines.doctor", "pipelines.train"]
            for line in started:
                _, name, *given = line.split("\t")
                (self.clone / given[-1].removeprefix("run.dir=") / "COMPLETE").unlink(missing_ok=True)
                self._verb(name, *given)
