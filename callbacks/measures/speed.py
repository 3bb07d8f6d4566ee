"""How fast pictures are drawn (the paper's Table 3): one batch at a time, with prompt, tokens and decoder timed
separately."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from callbacks.measures.measure import EvaluationContext, Measure, MeasureConfig, Result
from callbacks.measures.pictures import require_vq, uniforms
from callbacks.measures.records import Record
from datamodules.encode import encode_caption
from modules.files import GIB
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.vq import ImageTokenizer
from modules.timing import Clock

PROMPT = "A man rides a brown horse along a sandy beach while two dogs run after them."
"""Captions are padded to the same length, so the text does not change the time."""
PARTS = ("prefill_s", "tokens_s", "vq_s")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(MeasureConfig):
    """What is timed. The defaults are the paper's batch, and the fewest batches that may be called ``speed``."""

    batch: int = 16
    """Pictures per batch."""
    warmup: int = 3
    """Batches before the timed ones; the first one compiles kernels."""
    batches: int = 10
    """Timed batches."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = [
            f"{key}={getattr(self, key)} must be at least 1" for key in ("batch", "batches") if getattr(self, key) < 1
        ]
        if self.warmup < 0:
            found.append(f"warmup={self.warmup} must be 0 or more")
        return found

    def reduced(self, most: int) -> Self | None:
        """None: with fewer pictures, the time per picture is different."""
        return None


class Speed(Measure):
    """``img_per_s``: pictures per batch over the median time from caption ids to pixels.

    ``total_s`` and its parts are medians over the batches; ``total_s/iqr`` and the like are interquartile ranges.
    ``peak_mem`` and ``peak_mem/reserved`` are GPU memory in GiB; on a CPU they are missing.
    """

    key: ClassVar[str] = "speed"
    draws: ClassVar[bool] = True
    record_keys = dict.fromkeys(PARTS, float)
    config_type = SpeedConfig

    config: SpeedConfig

    @property
    def name(self) -> str:
        """``speed``, or ``speed_mini`` with another batch or fewer batches than the protocol's."""
        default, config = SpeedConfig(), self.config
        full = config.batch == default.batch and config.warmup >= default.warmup and config.batches >= default.batches
        return "speed" if full else "speed_mini"

    def check(self, context: EvaluationContext) -> None:
        """The run must have an image tokenizer."""
        require_vq(context)

    def sample_ids(self) -> Sequence[str]:
        """One id per timed batch."""
        return [f"batch-{number:03d}" for number in range(self.config.batches)]

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Batch, model and machine: numbers from different machines cannot be compared."""
        model = context.model.config
        return {
            "measure": self.name,
            "batch": self.config.batch,
            "warmup": self.config.warmup,
            "caption_length": model.caption_length,
            "image_tokens": model.image_tokens,
            "image_size": require_vq(context).image_size,
            "parameters": sum(parameter.numel() for parameter in context.model.parameters()),
            "precision": str(context.model.compute).removeprefix("torch."),
            "decoding": "sampling, without guidance",
            "vq": require_vq(context).name,
            "device": _device_name(context.device),
            "kernels": {name: _version(name) for name in ("mamba-ssm", "causal-conv1d", "triton")},
        }

    def generate(self, context: EvaluationContext) -> bool:
        """Time all batches on rank 0. Other ranks working at the same time would distort the times."""
        return context.rank > 0 or super().generate(replace(context, world_size=1))

    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        """Time one batch per id, after the warm-up."""
        for _ in range(self.config.warmup if ids else 0):
            self._time(context)
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(context.device)
        for sample in ids:
            seconds = self._time(context)
            record: Record = {"sample_id": sample, "split": "timed", "prompt": PROMPT}
            yield [record | dict(zip(PARTS, seconds, strict=True)) | _memory(context.device)]

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Medians over the batches."""
        times = {part: [float(record[part]) for record in records] for part in PARTS}
        times["total_s"] = [sum(parts) for parts in zip(*times.values(), strict=True)]
        medians = {name: float(np.median(values)) for name, values in times.items()}
        metrics = {"img_per_s": self.config.batch / medians["total_s"]} | medians
        for name, values in times.items():
            low, high = np.percentile(values, [25, 75])
            metrics[f"{name}/iqr"] = float(high - low)
        for key in ("peak_mem", "peak_mem/reserved"):
            if key in records[0]:
                metrics[key] = max(record[key] for record in records)
        return Result(metrics=metrics, standard_errors={}, baselines={}, protocol=self.traced(context, records))

    def _time(self, context: EvaluationContext) -> list[float]:
        """Seconds of prompt, tokens and decoder of one batch."""
        model, vq = context.model, require_vq(context)
        ids = [encode_caption(context.tokenizer, PROMPT, model.config.caption_length)] * self.config.batch
        caption_ids = torch.tensor(ids, device=context.device)
        numbers = torch.stack([uniforms(0, index, model.config.image_tokens) for index in range(self.config.batch)])
        numbers = numbers.to(context.device)
        return time_drawing(model, vq, caption_ids, numbers)


def time_drawing(model: OmniMamba, vq: ImageTokenizer | None, caption_ids: Tensor, numbers: Tensor) -> list[float]:
    """Seconds of prompt, tokens and decoder of one batch; without an image tokenizer, only the first two."""
    clock = Clock(model.device)
    # the backbone's forward runs once, for the prompt; the tokens go through its single-step method
    hook = model.backbone.register_forward_hook(lambda *_: clock.mark())
    try:
        clock.mark()
        codes = model.generate_image_ids(caption_ids, uniforms_BI=numbers)
        clock.mark()
        if vq is not None:
            vq.decode(codes)
            clock.mark()
    finally:
        hook.remove()
    return clock.seconds()


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {
        "peak_mem": torch.cuda.max_memory_allocated(device) / GIB,
        "peak_mem/reserved": torch.cuda.max_memory_reserved(device) / GIB,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
