"""How much memory a training holds on its machine, and how much it may hold."""

import logging
from pathlib import Path

from modules.files import GIB

log = logging.getLogger(__name__)

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class MemoryGuard:
    """Watches the resident memory of this process and its workers, and warns once when it comes near the limit."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._warned = False

    def look(self) -> float:
        """GiB in use now."""
        used, limit = resident_bytes(), memory_limit()
        if used > self.share * limit and not self._warned:
            self._warned = True
            log.warning(
                "this process and its workers hold %.1f of %.1f GiB of memory (guards.memory_share=%g); when "
                "that is full the system kills one of them. Fewer data.num_workers need less",
                *(used / GIB, limit / GIB, self.share),
            )
        return used / GIB


def resident_bytes() -> int:
    """Resident memory of this process and its children; shared pages count once per process."""
    import psutil

    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it has just ended
    return total


def memory_limit() -> int:
    """Memory limit of this process's cgroup in bytes: the batch system's limit if there is one, else the machine's."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in CGROUP_LIMITS:
        if path.is_file() and (text := path.read_text(encoding="utf-8").strip()).isdigit():
            return min(total, int(text))
    return total
