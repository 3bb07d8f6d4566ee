"""How several devices work together: Lightning's strategies, or our own for ZeRO."""

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, Strategy

from modules.zero import Level, ZeroStrategy
from pipelines.run.hardware import HardwareConfig

ZERO_LEVELS: dict[str, Level] = {"zero1": 1, "zero2": 2, "zero3": 3}


def build_strategy(config: HardwareConfig) -> Strategy | str:
    """How the ranks share the work."""
    timeout = timedelta(minutes=config.timeout_minutes)
    if config.strategy != "ddp":
        return ZeroStrategy(ZERO_LEVELS[config.strategy], timeout=timeout)
    if config.ranks == 1:
        return "auto"
    return DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)  # otherwise gradients would be stored twice
