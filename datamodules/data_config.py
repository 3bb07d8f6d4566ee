"""What a run reads, as configured; `datamodules.mixed` reads it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datamodules.datasets import CaptionChoice, Padding
from datamodules.encode import PromptTemplate
from modules.omnimamba.config import ModelConfig, Task

MOST_WORKERS = 256
"""Of one rank. Each is a process; more of them would fill a machine before it can say so."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Samples per task."""

    mmu: int = 0
    """MMU samples."""
    t2i: int = 0
    """T2I samples."""

    def of(self, task: Task) -> int:
        """Samples of ``task``."""
        return self.mmu if task == "mmu" else self.t2i

    def lengths(self, model: ModelConfig, tasks: Sequence[Task]) -> list[int]:
        """Positions of each sequence of a micro-batch of these samples, padding counted."""
        return [model.length(task) for task in tasks for _ in range(self.of(task))]

    def positions(self, model: ModelConfig, tasks: Sequence[Task]) -> int:
        """Number of sequence positions in a micro-batch of these samples."""
        return sum(self.lengths(model, tasks))


@dataclass(frozen=True, kw_only=True)
class ValidationShards:
    """Shards that are measured and never trained on."""

    mmu: str = ""
    """Manifest of MMU shards, as in `DataConfig`."""
    t2i: str = ""
    """Manifest of T2I shards."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data to read, and what a step consists of."""

    mmu: str = ""
    """Manifest of the MMU shards: a path, its folder, or an address that fsspec opens (s3://, https://)."""
    t2i: str = ""
    """Manifest of the T2I shards, likewise."""
    val: ValidationShards = field(default_factory=ValidationShards)
    """What evaluation.val measures the loss on."""
    cache: str = ""
    """Local folder. Shards are copied into it and verified before the first step. Required if a manifest is an
    address. T2I tables go there too; without it they go into .cache next to their manifest."""
    micro_batch: Counts = field(default_factory=lambda: Counts(mmu=3, t2i=48))
    """Samples per task in each micro-batch of each rank: the mixing ratio."""
    global_batch: Counts | None = None
    """Samples per task in one optimizer step over all ranks, reached by accumulation. None: one micro-batch a rank."""
    template: PromptTemplate = field(default_factory=PromptTemplate)
    pad: Padding = "fixed"
    """``fixed``: every MMU sequence has model.mmu_text_length text ids, as published. ``none``: no padding. The losses
    are the same, because a state-space model never sees later positions, and the step is shorter."""
    caption: CaptionChoice = "random"
    """Which of an image's n captions to use. ``random``: any, each time, as published. ``rotate``: each once in n
    epochs."""
    caption_dropout: float = 0.0
    """Share of T2I samples trained without their caption, for classifier-free guidance; 0 as published."""
    bad_limit: float = 1e-4
    """Training stops if more than this share of a stream's samples (and more than 10) cannot be used."""
    num_workers: int = 0
    """Processes that read data for each rank; 0: the rank reads itself."""
    log_samples: bool = False
    """Write the sample keys of every micro-step to samples.jsonl."""
    accept_changed: bool = False
    """Resume even if the shards are not the ones the run was trained on so far."""

    def problems(self) -> list[str]:
        """Broken rules that concern a single key, each with the way out."""
        found = []
        if not 0 <= self.num_workers <= MOST_WORKERS:
            found.append(f"data.num_workers={self.num_workers} must lie in [0, {MOST_WORKERS}]; 2 to 8 feed a GPU")
        if self.template.question.count("{question}") != 1:
            found.append(f"data.template.question={self.template.question!r} must hold {{question}} once")
        if not 0 <= self.caption_dropout < 1:
            found.append(f"data.caption_dropout={self.caption_dropout} must lie in [0, 1)")
        if not 0 <= self.bad_limit <= 1:
            found.append(f"data.bad_limit={self.bad_limit} must lie in [0, 1]")
        return found

    def accumulation(self, tasks: Sequence[Task], world_size: int) -> int:
        """Micro-batches per optimizer step.

        Raises:
            ValueError: the global batch is not a multiple of the micro-batch over all ranks, or the multiple differs
                between tasks.
        """
        if self.global_batch is None:
            return 1
        factors: dict[str, int] = {}
        for task in tasks:
            whole, micro = self.global_batch.of(task), self.micro_batch.of(task)
            if whole < 1 or whole % (micro * world_size):
                raise ValueError(
                    f"data.global_batch.{task}={whole} is not a multiple of data.micro_batch.{task}={micro} on "
                    f"{world_size} ranks ({micro * world_size} a micro-step); choose one that is, or other ranks"
                )
            factors[task] = whole // (micro * world_size)
        if len(set(factors.values())) > 1:
            raise ValueError(
                f"data.global_batch asks for {factors} micro-steps per step; each micro-step holds all tasks, so "
                "the ratio of the global batch must be that of data.micro_batch"
            )
        return factors[tasks[0]]
