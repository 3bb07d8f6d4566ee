"""The end of a process that has a process group: in order, but for the dismantling of the interpreter."""

import os
import sys

exit_code: int | None = None
"""Set where the process is to end by `leave`."""


def leave() -> None:
    """End the process by ``exit_code``, as the last function that is called at its exit.

    gloo's threads drop their references to tensors when it suits them. One that does so while the interpreter is
    dismantled aborts the process (-6), though its run is complete (docs/decisions/0016-how-a-rank-leaves.md).

    Raises:
        OSError: what was printed has no room; Python says so and ends the process by another code.
    """
    if exit_code is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(exit_code)
