"""The mixed data module: every micro-batch holds exactly the configured number of samples of each task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import Sampler

from datamodules.datasets import CaptionChoice, DataError, MixedDataset, MMUSamples, Padding, T2ISamples
from datamodules.encode import PromptTemplate
from datamodules.handover import BatchLoader, hand_over, start_worker
from datamodules.plan import Places, StepPlan, Stream
from datamodules.shards.manifest import manifest_file
from datamodules.shards.reader import ShardSet
from datamodules.t2i_table import open_table
from modules.omnimamba.config import TASKS, ModelConfig, Task
from modules.omnimamba.tokenizer import TextTokenizer

FIELDS: dict[Task, set[str]] = {"mmu": {"json", "jpg"}, "t2i": {"json", "vq"}}
"""What each sample of a task must hold."""
MOST_WORKERS = 256
"""Of one rank. Each is a process; more of them would fill a machine before it can say so."""
ENDLESS = 10**9
"""Length of the loader. Lightning prefetches a loader without a length, and a resume would lose that batch."""


Report = Callable[[str], None]
"""Called with one line of progress at a time."""


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

    def positions(self, model: ModelConfig, tasks: Sequence[Task]) -> int:
        """Number of sequence positions in a micro-batch of these samples."""
        return sum(self.of(task) * model.length(task) for task in tasks)


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


class MixedDataModule(pl.LightningDataModule):
    """Feeds a stage. Its state is the position of each stream, committed after each step, never on fetch."""

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: TextTokenizer,
        *,
        tasks: Sequence[Task],
        seed: int,
        report: Report = lambda _: None,
        hang_minutes: float = 0.0,
    ) -> None:
        """Open the shards of ``tasks``; ``report`` is called with the progress of slow work. If workers make no
        micro-batch for ``hang_minutes``, training ends; 0: never.

        Raises:
            FileNotFoundError: a task has no manifest.
            ValueError: shards are damaged.
        """
        super().__init__()
        self.config = config
        self.seed = seed
        self._report, self._hang_minutes = report, hang_minutes
        self.samples: dict[Task, T2ISamples | MMUSamples] = {}
        for task in (task for task in TASKS if task in tasks):
            shards = self._open(task)
            if task == "mmu":
                self.samples[task] = MMUSamples(shards, tokenizer, model, config.template, seed=seed, pad=config.pad)
            else:
                self.samples[task] = self._t2i(shards, model, tokenizer)
        self.positions: dict[Task, int] = dict.fromkeys(self.samples, 0)
        self.plan = self._plan(rank=0, world_size=1)

    def _open(self, task: Task) -> ShardSet:
        manifest = getattr(self.config, task)

        def copied(done: int, files: int) -> None:
            if done == files or done % max(1, files // 10) == 0:
                self._report(f"data.{task}: {done} of {files} files are in {self.config.cache}")

        shards = ShardSet.open(manifest, self.config.cache or None, progress=copied)
        if missing := FIELDS[task] - set(shards.fields):
            raise ValueError(
                f"data.{task}={manifest} holds {', '.join(sorted(shards.fields))} but no "
                f"{', '.join(sorted(missing))}: these are not {task} shards; name others"
            )
        return shards

    def _t2i(self, shards: ShardSet, model: ModelConfig, tokenizer: TextTokenizer) -> T2ISamples:
        manifest = self.config.t2i
        folder = Path(self.config.cache) if self.config.cache else Path(manifest_file(manifest)).parent / ".cache"
        try:
            table = open_table(shards, tokenizer, model.caption_length, folder, self._report)
        except OSError as error:
            raise DataError(
                f"the table of {manifest} cannot be written to {folder} ({error}); name a folder of this node with "
                "space for it as data.cache"
            ) from error
        if table.image_tokens != model.image_tokens or table.largest_code >= model.image_vocab:
            raise DataError(
                f"{manifest}: {table.image_tokens} VQ codes a sample, up to {table.largest_code}, but the model takes "
                f"model.image_tokens={model.image_tokens} below model.image_vocab={model.image_vocab}; "
                "prepare the data with the VQ tokenizer that the model is configured for"
            )
        return T2ISamples(
            shards,
            table,
            tokenizer,
            model,
            seed=self.seed,
            caption=self.config.caption,
            caption_dropout=self.config.caption_dropout,
        )

    def setup(self, stage: str) -> None:
        """Read rank and world size from the trainer."""
        if self.trainer is not None:
            self.plan = self._plan(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> BatchLoader:
        """An endless stream of micro-batches, from the committed position on."""
        workers = self.config.num_workers
        return BatchLoader(
            MixedDataset(self.samples),
            batch_size=None,  # the sampler yields whole micro-batches
            sampler=_PlanSampler(self),
            num_workers=workers,
            collate_fn=hand_over,
            pin_memory=self._for_gpu(),
            prefetch_factor=2 if workers else None,
            worker_init_fn=start_worker if workers else None,
            timeout=60 * self._hang_minutes if workers else 0,
        )

    def _for_gpu(self) -> bool:
        """Whether batches go to a GPU; without a trainer, whether there is one. Pinning also uses GPU memory."""
        if self.trainer is None:
            return torch.cuda.is_available()
        return self.trainer.strategy.root_device.type == "cuda"

    def commit(self) -> None:
        """Advance past the samples of one optimizer step, so they do not come again."""
        self.positions = self.plan.advance(self.positions)

    def keys(self, task: Task, places: Places) -> list[str]:
        """Keys of the samples at ``places``."""
        shards = self.samples[task].shards
        return [shards.key(index) for index in places.indices.tolist()]

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each task's data."""
        return {task: samples.shards.fingerprint for task, samples in self.samples.items()}

    def epochs(self) -> dict[str, float]:
        """Epochs completed by each stream."""
        return {task: self.positions[task] / len(samples.shards) for task, samples in self.samples.items()}

    def state_dict(self) -> dict[str, Any]:
        """A hundred bytes: the same on every rank, and for any number of ranks and workers."""
        return {"version": 1, "seed": self.seed, "fingerprints": self.fingerprints(), "positions": dict(self.positions)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the positions in ``state_dict``.

        Raises:
            ValueError: its seed, tasks or data differ from this module's.
        """
        mine, theirs = self.fingerprints(), state_dict["fingerprints"]
        if mine != theirs and not self.config.accept_changed:
            raise ValueError(
                f"the data changed since the checkpoint: fingerprints then {theirs}, now {mine}. Restore the shards, "
                "or set data.accept_changed=true to continue at the same positions of the new data"
            )
        if state_dict["seed"] != self.seed:
            raise ValueError(
                f"the checkpoint's data order has seed {state_dict['seed']}, this run has seed={self.seed}"
            )
        self.positions = {task: state_dict["positions"][task] for task in self.samples}

    def _plan(self, rank: int, world_size: int) -> StepPlan:
        streams = {task: Stream(task, len(samples.shards), self.seed) for task, samples in self.samples.items()}
        micro = {task: self.config.micro_batch.of(task) for task in self.samples}
        return StepPlan(streams, micro, self.config.accumulation(list(self.samples), world_size), world_size, rank)


class _PlanSampler(Sampler[dict[Task, Places]]):
    """Places of this rank's micro-steps. Positions are read when iteration starts, so a state may be loaded late."""

    def __init__(self, module: MixedDataModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[dict[Task, Places]]:
        plan, positions = self.module.plan, dict(self.module.positions)
        while True:
            for j in range(plan.accumulation):
                yield plan.micro_step(positions, j)
            positions = plan.advance(positions)

    def __len__(self) -> int:
        return ENDLESS
