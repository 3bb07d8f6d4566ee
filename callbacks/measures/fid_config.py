"""Configuration of the Fréchet distance, and the names that follow from it."""

import re
from dataclasses import dataclass, replace
from typing import Literal, Self

from callbacks.measures.measure import MeasureConfig
from callbacks.measures.pictures import SamplingConfig
from modules.metrics.networks import INCEPTION

POOL = "pool"


@dataclass(frozen=True, kw_only=True)
class FidConfig(SamplingConfig, MeasureConfig):
    """What is drawn, how many pictures, and what they are compared with."""

    captions: str
    """COCO captions JSON, or a table of chosen prompts (.csv, .jsonl)."""
    images: str = ""
    """Folder of its pictures."""
    n: int
    """How many pictures to draw, each for a caption of a different real picture. Distances with different n cannot be
    compared."""
    data: Literal["official", "scenes"] = "official"
    """``scenes``: pictures other than COCO's val2014. With a network, counts are not checked and the measure's name
    ends in ``_style``."""
    extractor: str = POOL
    """What makes the features: "pool", which needs no weights; "inception"; or any other word, as the name of your own
    TorchScript network."""
    protocol: Literal["uvit", "t2ib", "cleanfid"] = "uvit"
    """How pictures are prepared for a network; see modules/metrics/protocols.py."""
    weights: str = ""
    """The network's file. It is never downloaded."""
    weights_sha256: str = ""
    """Its hash. Optional for Inception, whose files are known."""
    reference: str = ""
    """What to compare with: a folder of pictures, or an npz of their statistics; empty: those of the captions JSON."""
    n_reference: int = 0
    """How many real pictures of the captions JSON to compare with; 0: all."""
    cache: str = ""
    """Folder that keeps the statistics of reference pictures for other runs; empty: keep none."""

    @property
    def is_table(self) -> bool:
        """Whether ``captions`` is a table of prompts that are already chosen."""
        return self.captions.endswith((".csv", ".tsv", ".jsonl"))

    @property
    def has_statistics(self) -> bool:
        """Whether ``reference`` is a file of statistics."""
        return self.reference.lower().endswith((".npz", ".npy"))

    @property
    def is_inception(self) -> bool:
        """Whether the network is Inception: only its distances are called FID."""
        return self.extractor == INCEPTION

    @property
    def official(self) -> bool:
        """Whether the files must be the complete COCO files."""
        return self.data == "official" and self.extractor != POOL

    @property
    def measure(self) -> str:
        """``coco`` for FID under ``uvit``; any other name says how it differs."""
        if self.extractor == POOL:
            return f"fd_{POOL}"
        name = "coco" if self.is_inception else f"fd_{self.extractor}"
        if self.protocol != "uvit":
            name += f"_{self.protocol}"
        return name if self.data == "official" else f"{name}_style"

    def metric(self, kind: str, n: int) -> str:
        """Name of a metric with its number of pictures, as in fid30k or fd_256.

        ``kind`` is a word such as "rfid". If the network is not Inception, its "fid" or "kid" becomes "fd" or "kd".
        """
        if not self.is_inception:
            kind = kind.replace("fid", "fd").replace("kid", "kd")
        return kind + _count(n) + (f"_ref{_count(self.n_reference)}" if self.n_reference else "")

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = super().problems()
        if self.n < 2:
            found.append(f"n={self.n} must be at least 2: one picture has no covariance")
        if self.n_reference < 0 or self.n_reference == 1:
            found.append(f"n_reference={self.n_reference} must be 0 (all pictures) or at least 2")
        if self.n_reference and self.reference:
            found.append(
                f"n_reference={self.n_reference} chooses from the captions file; leave out n_reference or reference"
            )
        if not self.is_table and not self.images:
            found.append("images is empty; name the folder of the pictures that the captions file lists")
        if self.is_table and not self.reference:
            found.append(f"captions={self.captions} lists no pictures to compare with; set reference")
        return found + self._extractor_problems()

    def reduced(self, most: int) -> Self | None:
        """The same with at most ``most`` pictures."""
        return replace(self, n=min(most, self.n))

    def _extractor_problems(self) -> list[str]:
        if self.extractor == POOL:
            given = [key for key in ("weights", "weights_sha256") if getattr(self, key)]
            given += ["protocol"] if self.protocol != "uvit" else []
            return [f"extractor=pool takes no {key}; leave it out, or choose extractor=inception" for key in given]
        found = []
        if not re.fullmatch(r"[a-z0-9_]+", self.extractor):
            found.append(
                f"extractor={self.extractor!r} must be a word of lower-case letters, digits and _: it names results"
            )
        if not self.weights:
            found.append(f"extractor={self.extractor} needs weights; name the network's file")
        if not self.is_inception and not self.weights_sha256:
            found.append(f"extractor={self.extractor} needs weights_sha256, so that its distances can be told apart")
        return found


def _count(n: int) -> str:
    return f"{n // 1000}k" if n % 1000 == 0 else f"_{n}"
