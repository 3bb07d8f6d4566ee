"""The mixed data module: every micro-batch holds exactly the configured number of samples of each task."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import Sampler

from datamodules.data_config import DataConfig
from datamodules.datasets import DataError, MixedDataset, MMUSamples, T2ISamples
from datamodules.handover import BatchLoader, hand_over, start_worker
from datamodules.plan import Places, StepPlan, Stream
from datamodules.shards.manifest import manifest_file
from datamodules.shards.reader import ShardSet
from datamodules.t2i_table import open_table
from modules.omnimamba.config import TASKS, ModelConfig, Task
from modules.omnimamba.tokenizer import TextTokenizer

FIELDS: dict[Task, set[str]] = {"mmu": {"json", "jpg"}, "t2i": {"json", "vq"}}
"""What each sample of a task must hold."""

ENDLESS = 10**9
"""Length of the loader. Lightning prefetches a loader without a length, and a resume would lose that batch."""
Report = Callable[[str], None]
"""Called with one line of progress at a time."""


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
