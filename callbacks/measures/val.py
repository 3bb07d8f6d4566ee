"""Validation loss: the mean cross-entropy of each task's tokens on samples that are never trained on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from callbacks.measures.measure import EvaluationContext, Measure, MeasureConfig, Result
from callbacks.measures.records import Record
from datamodules.datasets import Samples, T2ISamples
from datamodules.plan import Places
from modules.json_lines import Keys
from modules.omnimamba.config import TASKS, Task
from modules.omnimamba.model import OmniMamba


@dataclass(frozen=True, kw_only=True)
class ValConfig(MeasureConfig):
    """When to measure the loss on the shards of data.val, and on how many samples."""

    every_n_steps: int = 0
    """Steps between two of these. 0: those of evaluation.every_n_steps."""
    limit: int | None = None
    """Samples of each task, spread evenly over its shards; null uses all."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = []
        if self.every_n_steps < 0:
            found.append(f"every_n_steps={self.every_n_steps} must be 0 (as evaluation.every_n_steps) or more")
        if self.limit is not None and self.limit < 1:
            found.append(f"limit={self.limit} must be at least 1, or null for all samples")
        return found

    def reduced(self, most: int) -> Self:
        """Itself: its size is ``limit``, so that all values of a run can be compared."""
        del most
        return self


@dataclass(frozen=True)
class _Batch:
    """Samples that go through the model together, whatever the number of ranks: so no rank changes a bit."""

    task: Task
    indices: NDArray[np.int64]
    ids: list[str]


class Val(Measure):
    """``loss_<task>`` in nats per token, without LoRA dropout and caption dropout, always with the same captions.

    A sample that cannot be used is left out and counted (``unusable_<task>``).
    """

    key: ClassVar[str] = "val"
    record_keys: ClassVar[Keys] = {"loss": float, "tokens": int}
    config_type = ValConfig

    config: ValConfig
    _batches: list[_Batch] | None = None

    @property
    def name(self) -> str:
        """``val``."""
        return "val"

    def check(self, context: EvaluationContext) -> None:
        """Open the shards of data.val."""
        self._open(context)

    def sample_ids(self) -> Sequence[str]:
        """``<task>/<key>`` of each sample; known once a context was seen."""
        assert self._batches is not None, "check comes first"
        return [sample for batch in self._batches for sample in batch.ids]

    def share(self, context: EvaluationContext) -> Sequence[str]:
        """Whole batches, in turn."""
        assert self._batches is not None, "check comes first"
        return [sample for batch in self._batches[context.rank :: context.world_size] for sample in batch.ids]

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Data, limit, batch and precision; the last two decide about the last bits."""
        opened = self._open(context)
        return {
            "measure": self.name,
            "limit": self.config.limit,
            "batch": context.batch_size,
            "precision": str(context.model.compute).removeprefix("torch."),
            "template": context.template.question,
            "shards": {task: samples.shards.fingerprint for task, samples in opened.items()},
        }

    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        """The summed loss and the number of tokens of each sample."""
        opened, wanted = self._open(context), set(ids)
        for batch in self._batches or []:
            if not wanted.isdisjoint(batch.ids):
                records = _measured(context, opened[batch.task], batch)
                yield [record for record in records if record["sample_id"] in wanted]

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Loss per token of each task, its standard error over samples, and that of a uniform guess."""
        metrics: dict[str, float] = {}
        errors: dict[str, float] = {}
        baselines: dict[str, float] = {}
        counts: dict[str, int] = {}
        for task in TASKS:
            of_task = [record for record in records if record["split"] == task]
            usable = [record for record in of_task if record["tokens"]]
            if not of_task:
                continue
            if not usable:
                raise ValueError(f"no sample of data.val.{task} can be used, first {of_task[0]['reason']}")
            loss, tokens = (np.array([float(record[key]) for record in usable]) for key in ("loss", "tokens"))
            mean = math.fsum(loss) / tokens.sum()
            key = f"loss_{task}"
            metrics[key], counts[key] = mean, len(usable)
            errors[key] = float(np.sqrt(np.square(loss - mean * tokens).sum()) / tokens.sum())
            baselines[key] = math.log(_choices(context.model, task))
            if len(usable) < len(of_task):
                metrics[f"unusable_{task}"] = float(len(of_task) - len(usable))
        return Result(
            metrics=metrics,
            standard_errors=errors,
            baselines=baselines,
            protocol=self.traced(context, records, baseline="all tokens equally likely"),
            counts=counts,
        )

    def _open(self, context: EvaluationContext) -> Mapping[Task, Samples]:
        opened = context.validation()
        if not opened:
            raise ValueError(
                "evaluation.val has nothing to measure: name a manifest of one of the stage's tasks as data.val.mmu or "
                "data.val.t2i (pipelines.prepare with val_share=0.02 makes one), or set evaluation.val=null"
            )
        if self._batches is None:
            self._batches = [
                batch
                for task in TASKS
                if task in opened
                for batch in _batches(task, opened[task], self.config.limit, context.batch_size)
            ]
        return opened


def _batches(task: Task, samples: Samples, limit: int | None, size: int) -> list[_Batch]:
    whole = len(samples.shards)
    chosen = np.arange(whole)
    if limit is not None and limit < whole:
        chosen = np.arange(limit) * whole // limit
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return [_Batch(task, part, [f"{task}/{samples.shards.key(index)}" for index in part.tolist()]) for part in parts]


def _measured(context: EvaluationContext, samples: Samples, batch: _Batch) -> list[Record]:
    places, reasons = Places(np.zeros_like(batch.indices), batch.indices), dict[str, str]()
    taken = batch.indices
    if isinstance(samples, T2ISamples):
        tensors: dict[str, Any] = samples.fetch(places)
    else:
        tensors, used, bad = samples.fetch(places)
        taken, reasons = used.indices, {f"{batch.task}/{each.key}": each.reason for each in bad}
    inputs = {key: value.to(context.device) if torch.is_tensor(value) else value for key, value in tensors.items()}
    losses, tokens = _per_sample(context.model, batch.task, inputs, len(batch.ids))
    records: list[Record] = []
    for at, sample in enumerate(batch.ids):
        record = {"sample_id": sample, "split": batch.task, "prompt": "", "loss": losses[at], "tokens": tokens[at]}
        if taken[at] != batch.indices[at]:  # another one took its place, as in training
            record |= {"loss": 0.0, "tokens": 0, "reason": reasons[sample]}
        elif not math.isfinite(losses[at]):
            raise ValueError(f"the loss of {sample} in data.val.{batch.task} is not a finite number")
        records.append(record)
    return records


def _per_sample(model: OmniMamba, task: Task, inputs: Mapping[str, Any], n: int) -> tuple[list[float], list[int]]:
    """Summed cross-entropy and number of labelled tokens of each of ``n`` samples."""
    labelled = model({task: inputs})[task]
    losses_M = F.cross_entropy(labelled.logits.float(), labelled.labels, reduction="none").double().cpu()
    if task == "mmu":
        of_M = inputs["labelled"].cpu() // inputs["labels"].shape[1]
    else:
        of_M = torch.arange(len(losses_M)) // inputs["image_ids"].shape[1]
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, of_M, losses_M)
    return sums.tolist(), torch.bincount(of_M, minlength=n).tolist()


def _choices(model: OmniMamba, task: Task) -> int:
    """Number of tokens that the task's head chooses from."""
    table = model.image_table if task == "t2i" and model.image_table is not None else model.text_embedding
    return table.num_embeddings
