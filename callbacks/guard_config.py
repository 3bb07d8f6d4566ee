"""What is watched during training, as configured."""

from dataclasses import dataclass

ENOUGH = 32
"""How many gradient norms must be known before one is called a spike."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What is watched in addition to non-finite losses and gradients, which always end the run."""

    spike_sigma: float = 0.0
    """Leave out the update of a step if its gradient norm is more than this many standard deviations above the mean of
    the last ``spike_window`` steps. 0: never."""
    spike_window: int = 128
    """Steps whose gradient norms say what is usual."""
    spike_limit: int = 8
    """The run ends if more updates than this are left out within ``spike_window`` steps: it will not recover."""
    hang_minutes: float = 30.0
    """If a step, save or evaluation takes longer, the stacks of all threads are written to standard error. 0: never."""
    memory_share: float = 0.9
    """Warn when this process and its workers use more than this share of their memory limit."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = [
            f"guards.{name}={getattr(self, name)} must be 0 (off) or more"
            for name in ("spike_sigma", "hang_minutes")
            if not getattr(self, name) >= 0
        ]
        if self.spike_window < ENOUGH:
            found.append(f"guards.spike_window={self.spike_window} must be at least {ENOUGH}, to know what is usual")
        if self.spike_limit < 1:
            found.append(f"guards.spike_limit={self.spike_limit} must be at least 1")
        if not 0 < self.memory_share <= 1:
            found.append(f"guards.memory_share={self.memory_share} must lie in (0, 1]")
        return found
