"""Fréchet distance between generated and real pictures, and other metrics of the same features.

It is called ``fid`` only with the Inception network; with other features it is called ``fd``.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from callbacks.measures.fid_config import POOL, FidConfig
from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.pictures import Drawing, PictureMeasure, random_codes, require_vq, warn_if_greedy
from callbacks.measures.records import Record
from callbacks.measures.running import on_all_ranks
from datamodules.benchmarks.coco import CaptionPair, CaptionSet, Prompt, pictures_in, read_prompts, write_prompts
from datamodules.images import centre_crop, read_image, to_tensor
from modules.exchange import gathered
from modules.files import file_hashes
from modules.metrics import kid
from modules.metrics.features import FeatureSet, collect, take_parts, write_part
from modules.metrics.fid import POOL_DIM, frechet, pool_features
from modules.metrics.manifold import NEIGHBOURS, precision_recall
from modules.metrics.networks import Network, check_weights, load_network
from modules.metrics.protocols import PROTOCOLS
from modules.metrics.statistics import Statistics, read_statistics
from modules.omnimamba.llamagen import exactly

__all__ = ["Fid", "FidConfig"]

log = logging.getLogger(__name__)


class Fid(PictureMeasure):
    """``fid<n>``, lower is better; ``rfid<n>`` is the same for real pictures that went through the image tokenizer.

    Generated pictures are decoded from the tokenizer's codes, so ``rfid`` is the best that can be expected. The
    baseline is pictures of random codes, each equally likely. ``kid<n>``, ``precision<n>`` and ``recall<n>`` are
    computed if the reference has features, on at most 10,000 of each side.
    """

    key: ClassVar[str] = "fid"
    config_type = FidConfig

    config: FidConfig

    def __init__(self, config: FidConfig) -> None:
        super().__init__(config)
        self._reference: Statistics | None = None
        self._fixed: dict[str, float] | None = None
        """Distances that do not depend on the model: random codes and, if there are pictures, reconstructions."""
        self._network: Network | None = None

    @property
    def name(self) -> str:
        """``coco``, ``fd_pool`` and the like."""
        return self.config.measure + ("_mini" if self.mini else "")

    @cached_property
    def captions(self) -> CaptionSet:
        """The captions JSON."""
        captions = CaptionSet.read(Path(self.config.captions), Path(self.config.images))
        if self.config.official:
            captions.require_official()
        return captions

    @cached_property
    def prompts(self) -> Sequence[CaptionPair | Prompt]:
        """What is drawn: one caption for each of n pictures of the captions JSON, or the first n of a table."""
        config = self.config
        if config.is_table:
            images = Path(config.images) if config.images else None
            return read_prompts(Path(config.captions), config.n, images, official=config.official)
        return self.captions.choose(config.n, config.seed)

    def read(self) -> list[Drawing]:
        """The prompts in their order."""
        return [
            Drawing(sample_id=f"{index:06d}", index=index, caption=prompt.caption, image=prompt.image)
            for index, prompt in enumerate(self.prompts)
        ]

    @cached_property
    def reference(self) -> list[Path]:
        """The real pictures to compare with; empty if their statistics are given."""
        config = self.config
        if config.has_statistics:
            return []
        if config.reference:
            return pictures_in(Path(config.reference), official=config.official)
        if not config.n_reference:
            return self.captions.all_images()
        return [pair.image for pair in self.captions.choose(config.n_reference, config.seed)]

    def check(self, context: EvaluationContext) -> None:
        """Check also the network and the reference."""
        super().check(context)
        _ = self._making
        if not context.rank:
            warn_if_greedy(self.name, self.config)
        if self.config.has_statistics:
            self._reference = self._read_reference(context, Path(self.config.reference))
        elif len(self.reference) < 2:
            where = self.config.reference or self.config.captions
            raise ValueError(f"{where} lists {len(self.reference)} pictures; a distance needs at least 2")

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Add the captions file. The reference is left out: it changes the score, not the pictures."""
        return super().protocol(context) | {"files": file_hashes([Path(self.config.captions)])}

    def prepare_scoring(self, context: EvaluationContext) -> None:
        """Write this rank's part of the features next to the records. A single process extracts them when it scores."""
        if context.world_size == 1:
            return
        # rank 0 decides: after an error, other ranks may have other features
        missing = gathered(on_all_ranks(lambda: self._missing(context)))[0]
        records = self.records(context)
        parts = {name: self._collect(context, records, name, context.rank, context.world_size) for name in missing}
        write_part(context.records / self.name, parts, context.rank, context.world_size)

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Compute distances from the reference: generated, reconstructed, random."""
        sets = take_parts(context.records / self.name, context.world_size) or {
            name: self._collect(context, records, name) for name in self._missing(context)
        }
        generated, n = sets["generated"], len(records)
        if n <= len(generated.moments.shift):
            width = len(generated.moments.shift)
            log.warning("%s: %d pictures for features of width %d; expect a large bias", self.name, n, width)
        reference = self._reference = self._reference_of(context, sets)
        if self._fixed is None:
            beside = (name for name in ("reconstructed", "random") if name in sets)
            self._fixed = {name: _distance(sets[name], reference) for name in beside}
        metrics = {self.config.metric("fid", n): _distance(generated, reference)}
        if "reconstructed" in self._fixed:
            metrics[self.config.metric("rfid", n)] = self._fixed["reconstructed"]
        beyond = self._beyond_moments(generated, reference)
        write_prompts(context.records / self.name / "prompts.jsonl", self.prompts)
        return Result(
            metrics=metrics | {name: value for name, (value, _) in beyond.items()},
            counts={name: count for name, (_, count) in beyond.items()},
            standard_errors={},
            baselines={self.config.metric("fid", n): self._fixed["random"]},
            protocol=self.traced(
                context,
                records,
                n_reference=reference.n,
                captions_cut=sum(record["ids_cut"] > 0 for record in records),
                baseline="pictures of uniformly random codes",
                kid_subsets=[kid.SUBSETS, self._subset(generated, reference)],
                neighbours=NEIGHBOURS,
                **self._making,
                **self._origin(context),
            ),
        )

    @cached_property
    def _making(self) -> dict[str, str]:
        """How features are made. Statistics made in another way cannot be compared."""
        config = self.config
        if config.extractor == POOL:
            return {"extractor": POOL}
        found = check_weights(config.extractor, Path(config.weights), config.weights_sha256)
        return {"extractor": config.extractor, "fid_protocol": config.protocol, "weights_sha256": found}

    def _origin(self, context: EvaluationContext) -> dict[str, Any]:
        """Where the reference comes from."""
        path = Path(self.config.reference)
        size, scaling = self._crop(context)
        made = {"preprocessing": f"centre crop, {scaling.name} to {size}"}
        if self.config.has_statistics:
            return made | {"reference": file_hashes([path])}
        return made | {"reference": self._reference_key(context)}

    def _beyond_moments(self, generated: FeatureSet, reference: Statistics) -> dict[str, tuple[float, int]]:
        """The metrics that need features of both sides, each with the number of features behind it."""
        if reference.kept is None:
            return {}
        n, n_real = len(generated.kept), len(reference.kept)
        name = self.config.metric("kid", n)
        mean, deviation = kid.kid(generated.kept, reference.kept, seed=self.config.seed)
        found = {name: (mean, n), f"{name}/std": (deviation, n)}
        if min(n, n_real) > NEIGHBOURS:
            precision, recall = precision_recall(generated.kept, reference.kept)
            found[self.config.metric("precision", n)] = precision, n
            found[self.config.metric("recall", n)] = recall, n_real
        return found

    def _subset(self, generated: FeatureSet, reference: Statistics) -> int:
        return 0 if reference.kept is None else kid.subset_size(len(generated.kept), len(reference.kept))

    def _missing(self, context: EvaluationContext) -> list[str]:
        """The sets whose features are not known yet."""
        missing = ["generated"]
        if self._fixed is None:
            with_pictures = all(drawing.image for drawing in self.drawings.values())
            missing += ["reconstructed", "random"] if with_pictures else ["random"]
        cached = self._cached(context)
        if self._reference is None and self.reference and not (cached and cached.is_file()):
            missing.append("reference")
        return missing

    def _collect(
        self, context: EvaluationContext, records: Sequence[Record], name: str, rank: int = 0, world_size: int = 1
    ) -> FeatureSet:
        """A rank's part of one set."""
        vq = require_vq(context)
        drawings = list(self.drawings.values())

        def real(paths: Sequence[Path | None], size: int, *scaling: Any) -> Tensor:
            read = [to_tensor(centre_crop(read_image(path), size, *scaling)) for path in paths if path]
            return torch.stack(read).to(context.device)

        def noise(at: Sequence[int]) -> Tensor:
            return torch.stack([random_codes(vq, self.config.seed, drawings[i].index) for i in at])

        pictures: dict[str, Callable[[Sequence[int]], Tensor]] = {
            "generated": lambda at: vq.decode(torch.tensor([records[i]["codes"] for i in at], device=context.device)),
            "reconstructed": lambda at: vq.decode(vq.encode(real([drawings[i].image for i in at], vq.image_size))),
            "random": lambda at: vq.decode(noise(at).to(context.device)),
            "reference": lambda at: real([self.reference[i] for i in at], *self._crop(context)),
        }
        width, extract = self._extractor(context)
        n, batch = len(self.reference) if name == "reference" else len(drawings), context.batch_size
        with exactly(context.device):
            return collect(
                pictures[name], extract, n=n, width=width, batch_size=batch, rank=rank, world_size=world_size
            )

    def _crop(self, context: EvaluationContext) -> tuple[int, Any]:
        """Size of a real picture, and the filter that scales it to that size."""
        protocol = PROTOCOLS[self.config.protocol]
        size = require_vq(context).image_size if self.config.extractor == POOL else protocol.size
        return size, protocol.scaling

    def _extractor(self, context: EvaluationContext) -> tuple[int, Callable[[Tensor], Tensor]]:
        """Width of a feature, and the function from uint8 pictures (B, 3, S, S) to features."""
        config = self.config
        if config.extractor == POOL:
            return POOL_DIM, pool_features
        if self._network is None:
            path = Path(config.weights)
            self._network = load_network(config.extractor, path, context.device, config.weights_sha256)
        network, prepare = self._network, PROTOCOLS[config.protocol].network_input
        return network.width, lambda pictures: network(prepare(pictures))

    def _reference_of(self, context: EvaluationContext, sets: dict[str, FeatureSet]) -> Statistics:
        """Statistics of the reference, kept for the next evaluation: the reference does not change."""
        if self._reference is not None:
            return self._reference
        cached = self._cached(context)
        if "reference" not in sets:
            return self._read_reference(context, cached or Path(self.config.reference))
        found = sets["reference"]
        moments = found.moments
        if moments.n != len(self.reference):
            raise ValueError(f"the ranks read {moments.n} of {len(self.reference)} reference pictures; start again")
        statistics = Statistics(
            mean=moments.mean, covariance=moments.covariance, n=moments.n, kept=found.kept, about=self._making
        )
        if cached:
            statistics.write(cached)
        return statistics

    def _read_reference(self, context: EvaluationContext, path: Path) -> Statistics:
        return read_statistics(path, self._extractor(context)[0], self._making)

    def _reference_key(self, context: EvaluationContext) -> str:
        """Hash of how the reference's features are made, and of its files' names and sizes."""
        files = [[path.name, path.stat().st_size] for path in self.reference]
        return hashlib.sha256(json.dumps([self._making, self._crop(context)[0], files]).encode()).hexdigest()

    def _cached(self, context: EvaluationContext) -> Path | None:
        if not self.config.cache or not self.reference:
            return None
        return Path(self.config.cache) / f"{self.name}-{self._reference_key(context)[:16]}.npz"


def _distance(pictures: FeatureSet, reference: Statistics) -> float:
    return frechet(pictures.moments.mean, pictures.moments.covariance, reference.mean, reference.covariance)
