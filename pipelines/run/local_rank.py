"""Which of its node's processes this one is. Imports nothing heavy, because every verb asks before it warns."""

import os

_BY_HAND = ("bash", "interactive")
"""Names of Slurm jobs in which Lightning takes each process for one that a user started by hand."""


def local_rank() -> int:
    """The number of this process on its node, from 0; 0 if it was not started together with others.

    torchrun and Lightning set LOCAL_RANK. srun sets SLURM_LOCALID, which counts where Lightning takes the process for a
    task of srun: a process for which SLURM_NTASKS was unset trains alone, whatever its number.
    """
    given = os.environ.get("LOCAL_RANK")
    if given is None and "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _BY_HAND:
        given = os.environ.get("SLURM_LOCALID")
    return int(given) if given and given.isdecimal() else 0  # Lightning refuses what is no number
