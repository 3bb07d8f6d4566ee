"""Where Slurm comes from: installed, or Debian's packages fetched and unpacked into a cache folder, without root."""

import fcntl
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue", "scancel")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "shellcheck")
SYSTEM = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class SlurmMissingError(Exception):
    """There is no Slurm here; the message says why."""


@dataclass(frozen=True)
class Programs:
    """Slurm's programs: where they are looked for, and the folder they were unpacked into, if they were."""

    path: str
    root: Path | None = None

    @property
    def libraries(self) -> Path | None:
        """Folder of the unpacked shared libraries."""
        return self.root and self.root / f"usr/lib/{platform.machine()}-linux-gnu"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to run them, without anything of a job that the tests themselves may run in."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN", "MASTER_"))}
        if self.libraries:
            own["LD_LIBRARY_PATH"] = f"{self.libraries}/slurm-wlm:{self.libraries}"
        return {**own, "PATH": self.path}


def find_slurm() -> Programs:
    """The installed Slurm, or the fetched one.

    Raises:
        SlurmMissingError: neither can be had.
    """
    if all(shutil.which(name, path=SYSTEM) for name in NEEDED):
        programs = Programs(SYSTEM)
    else:
        root = _fetched()
        programs = Programs(f"{root}/usr/sbin:{root}/usr/bin:{SYSTEM}", root)
    if missing := [name for name in NEEDED if not shutil.which(name, path=programs.path)]:
        raise SlurmMissingError(f"no {', '.join(missing)} here")
    usage = subprocess.run(["slurmd", "-h"], env=programs.environment, capture_output=True, text=True)
    if "-N" not in usage.stderr + usage.stdout:
        raise SlurmMissingError(f"this slurmd cannot play several nodes: {usage.stderr.strip()[:200]}")
    return programs


def _fetched() -> Path:
    """The unpacked packages, fetched by whichever process comes first."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise SlurmMissingError("Slurm is not installed, and without apt-get it cannot be fetched")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnimamba-pipeline"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "slurm").is_dir():
            partial = cache / "slurm.tmp"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _fetch(partial)
            except subprocess.CalledProcessError as error:
                raise SlurmMissingError(f"Slurm cannot be fetched: {error.stderr.strip()[-300:]}") from error
            partial.rename(cache / "slurm")
    return cache / "slurm"


def _fetch(folder: Path) -> None:
    """Download what `apt-get install` would, with lists of our own, and unpack it into ``folder``."""
    lists = folder / "lists" / "partial"
    downloads = folder / "downloads"
    for each in (lists, downloads):
        each.mkdir(parents=True)
    settings = (
        f"Dir::State::Lists={lists.parent}",
        f"Dir::Cache={folder}/apt",
        "Debug::NoLocking=1",
        "APT::Sandbox::User=",
    )
    options = [word for setting in settings for word in ("-o", setting)]

    def apt(*words: str) -> str:
        command = ["apt-get", "-q", *options, *words]
        return subprocess.run(command, cwd=downloads, capture_output=True, text=True, check=True).stdout

    apt("update")
    plan = apt("install", "--simulate", "--no-install-recommends", *PACKAGES)
    apt("download", *(line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")))
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(folder)], capture_output=True, text=True, check=True)
    for name in ("slurmctld", "slurmd", "slurmstepd"):  # the package's scripts would set these up as alternatives
        program = folder / "usr/sbin" / name
        if not program.exists():
            program.symlink_to(f"{name}-wlm")
    for used in (lists.parent, downloads, folder / "apt"):
        shutil.rmtree(used, ignore_errors=True)
