"""Measures data loading: our streams against plain webdataset on the same shards, decoding, memory and resume.

Rates are medians of several rounds after a warm-up, all in one run on one machine: compare ratios, not runs.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.data_config import Counts, DataConfig
from datamodules.encode import PromptTemplate, encode_caption, encode_conversation
from datamodules.images import mmu_pixels, opened, to_tensor
from datamodules.mixed import MixedDataModule
from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.tokenizer import TextTokenizer
from pipelines.benchmark.samples import built, deep_sample, make_tokenizer, mmu_sample, photo, t2i_sample

H100_T2I, H100_MMU = 120, 8
"""Samples per second that stage 2 of the 1.3B model consumes at most on one H100, computed from its FLOPs."""


@dataclass(frozen=True, kw_only=True)
class DataBenchmarkConfig:
    """How much data to make and how long to measure."""

    folder: str
    """Where the shards go; they are built once and reused."""
    t2i_samples: int = 20_000
    mmu_samples: int = 400
    deep_samples: int = 1_200_000
    """Size of the set for measuring a resume deep in an epoch."""
    seconds: float = 3.0
    """Duration of each round."""
    rounds: int = 3
    workers: int = 2

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        least = {"t2i_samples": 1000, "mmu_samples": 100, "deep_samples": 1000, "rounds": 1, "workers": 1}
        found = [
            f"{name}={getattr(self, name)} must be at least {low}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        return found if self.seconds > 0 else [*found, f"seconds={self.seconds} must be above 0"]


@dataclass(frozen=True, kw_only=True)
class DataResult:
    """One measurement, with that of plain webdataset if there is one."""

    what: str
    unit: str
    ours: float
    webdataset: float | None = None
    target: str = ""


def measure_data(config: DataBenchmarkConfig, say: Callable[[str], None]) -> list[DataResult]:
    """Measure everything; missing data are built first."""
    folder = Path(config.folder)
    bench = _Bench(config, folder, make_tokenizer(folder))
    say(f"shards in {folder}")
    bench.t2i = built(folder / "t2i", config.t2i_samples, t2i_sample, 8192)
    bench.mmu = built(folder / "mmu", config.mmu_samples, mmu_sample, 1000)
    bench.deep = built(folder / "deep", config.deep_samples, deep_sample, 1000)
    lines = []
    for part in (bench.decode, bench.t2i_stream, bench.mmu_stream, bench.mix, bench.memory, bench.resume):
        for line in part():
            say(f"  {line.what}: {line.ours:,.0f} {line.unit}")
            lines.append(line)
    return lines


def as_json(config: DataBenchmarkConfig, lines: Iterable[DataResult]) -> str:
    """The measurements, and the machine they were made on."""
    import importlib.metadata as metadata
    import platform

    versions = {name: metadata.version(name) for name in ("torch", "webdataset", "simplejpeg", "pillow", "numpy")}
    machine = {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    content = {
        "machine": machine,
        "versions": versions,
        "config": asdict(config),
        "results": [asdict(line) for line in lines],
    }
    return json.dumps(content, indent=2) + "\n"


class _Bench:
    def __init__(self, config: DataBenchmarkConfig, folder: Path, tokenizer: TextTokenizer) -> None:
        self.config, self.folder, self.tokenizer = config, folder, tokenizer
        self.model = ModelConfig(vision=VisionConfig(kind="patches", image_size=384, patch_size=14))
        self.t2i = self.mmu = self.deep = Path()
        torch.set_num_threads(1)

    def decode(self) -> Iterator[DataResult]:
        payloads = [photo(i) for i in range(16)]
        ours = self._rate(_endless(lambda: (mmu_pixels(payload, 384) for payload in payloads)), 1)
        pillow = self._rate(_endless(lambda: (_pillow(payload) for payload in payloads)), 1)
        yield DataResult(
            what="decode + resize to 384 px, one core (compared with Pillow)",
            unit="images/s",
            ours=ours,
            webdataset=pillow,
            target="2 x Pillow",
        )

    def t2i_stream(self) -> Iterator[DataResult]:
        for size in (90, 720):
            ours = self._rate(iter(self._module(t2i=size).train_dataloader()), size)
            plain = self._rate(_batched(_webdataset(self.t2i, self._t2i_sample), size), size)
            yield DataResult(
                what=f"T2I stream, batches of {size}, no workers",
                unit="samples/s",
                ours=ours,
                webdataset=plain,
                target="200k and 20 x webdataset",
            )

    def mmu_stream(self) -> Iterator[DataResult]:
        for workers in (0, self.config.workers):
            ours = self._rate(iter(self._module(mmu=3, workers=workers).train_dataloader()), 3)
            plain = self._rate(_loader(_webdataset(self.mmu, self._mmu_sample), 3, workers), 3)
            yield DataResult(
                what=f"MMU stream at 384 px, {workers} workers", unit="samples/s", ours=ours, webdataset=plain
            )

    def mix(self) -> Iterator[DataResult]:
        workers = self.config.workers
        ours = self._rate(iter(self._module(mmu=3, t2i=48, workers=workers).train_dataloader()), 1)
        mmu = _loader(_webdataset(self.mmu, self._mmu_sample), 3, workers)
        plain = self._rate(zip(mmu, _batched(_webdataset(self.t2i, self._t2i_sample), 48), strict=False), 1)
        for what, size, need in (("T2I", 48, H100_T2I), ("MMU", 3, H100_MMU)):
            yield DataResult(
                what=f"3:48 mix, {workers} workers: {what}",
                unit="samples/s",
                ours=ours * size,
                webdataset=plain * size,
                target=f"10 x one H100 ({10 * need})",
            )

    def memory(self) -> Iterator[DataResult]:
        """Growth of the workers' memory after the first hundred batches."""
        workers = self.config.workers
        loader = iter(self._module(mmu=4, t2i=64, workers=workers).train_dataloader())
        _drain(loader, 100)
        before = _memory_of_workers()
        _drain(loader, max(200, 2 * self.config.mmu_samples // 4, self.config.t2i_samples // 64))
        grown = max(now - before[worker] for worker, now in _memory_of_workers().items())
        yield DataResult(what="memory growth of a worker over an epoch", unit="MB", ours=grown, target="below 50")

    def resume(self) -> Iterator[DataResult]:
        started = time.perf_counter()
        module = MixedDataModule(
            DataConfig(mmu=str(self.deep), micro_batch=Counts(mmu=3)),
            self.model,
            self.tokenizer,
            tasks=("mmu",),
            seed=0,
        )
        state = module.state_dict()
        module.load_state_dict({**state, "positions": {"mmu": int(self.config.deep_samples * 1.6)}})
        next(iter(module.train_dataloader()))
        yield DataResult(
            what=f"opening and first batch, deep in an epoch of {self.config.deep_samples:,}",
            unit="ms",
            ours=1000 * (time.perf_counter() - started),
            target="below 2000",
        )

    def _module(self, mmu: int = 0, t2i: int = 0, workers: int = 0) -> MixedDataModule:
        config = DataConfig(
            mmu=str(self.mmu), t2i=str(self.t2i), micro_batch=Counts(mmu=mmu, t2i=t2i), num_workers=workers
        )
        tasks = tuple(task for task, size in (("mmu", mmu), ("t2i", t2i)) if size)
        return MixedDataModule(config, self.model, self.tokenizer, tasks=tasks, seed=0)  # type: ignore[arg-type]

    def _t2i_sample(self, sample: dict[str, bytes]) -> tuple[torch.Tensor, list[int]]:
        captions = json.loads(sample["json"])["captions"]
        ids = encode_caption(self.tokenizer, captions[len(sample["vq"]) % len(captions)], self.model.caption_length)
        return torch.from_numpy(np.frombuffer(sample["vq"], "<u2").astype(np.int64)), ids

    def _mmu_sample(self, sample: dict[str, bytes]) -> tuple[torch.Tensor, list[int]]:
        turns = json.loads(sample["json"])["conversations"]
        pair = [(turns[0]["value"].replace("<image>", "").strip(), turns[1]["value"])]
        ids, _ = encode_conversation(self.tokenizer, pair, PromptTemplate(), self.model.mmu_text_length)
        return _pillow(sample["jpg"]), ids

    def _rate(self, batches: Iterator[Any], size: int) -> float:
        """Samples per second, the median of the rounds."""
        _drain(batches, 3)
        found = []
        for _ in range(self.config.rounds):
            count, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < self.config.seconds:
                next(batches)
                count += size
            found.append(count / elapsed)
        return statistics.median(found)


def _webdataset(manifest: Path, to_tensors: Callable[[dict[str, bytes]], Any]) -> Any:
    """An endless plain webdataset over the shards, as in its own documentation."""
    import webdataset

    urls = [str(path) for path in sorted(manifest.parent.glob("*.tar"))]
    return webdataset.WebDataset(urls, shardshuffle=False, workersplitter=_by_sample).repeat().map(to_tensors)


def _by_sample(urls: Iterable[Any]) -> Iterable[Any]:
    """Let every worker read every shard, because there may be fewer shards than workers."""
    return urls


def _loader(dataset: Any, size: int, workers: int) -> Iterator[Any]:
    if not workers:
        return _batched(dataset, size)
    import webdataset

    return iter(webdataset.WebLoader(dataset, batch_size=size, num_workers=workers, collate_fn=_stack))


def _batched(samples: Iterable[Any], size: int) -> Iterator[Any]:
    endless = iter(samples)
    while True:
        yield _stack(list(islice(endless, size)))


def _stack(samples: list[tuple[torch.Tensor, list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    tensors, ids = zip(*samples, strict=True)
    return torch.stack(tensors), torch.tensor(ids)


def _endless(parts: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    while True:
        yield from parts()


def _drain(batches: Iterator[Any], count: int) -> None:
    for _ in range(count):
        next(batches)


def _memory_of_workers() -> dict[int | None, float]:
    """Resident memory of each data worker, MB."""
    pages = {child.pid: Path(f"/proc/{child.pid}/statm").read_bytes().split()[1] for child in active_children()}
    return {worker: int(count) * os.sysconf("SC_PAGE_SIZE") / 1e6 for worker, count in pages.items()}


def _pillow(payload: bytes) -> torch.Tensor:
    """The tensor of `mmu_pixels`, made with Pillow only."""
    with opened(payload) as image:
        return to_tensor(image.convert("RGB").resize((384, 384), Image.Resampling.BICUBIC))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return "unknown"
