"""MME: perception and cognition, with two yes/no questions on each picture."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from callbacks.measures.answers import QuestionMeasure, QuestionsConfig
from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.records import Record
from datamodules.benchmarks.mme import mme_files, read_mme
from datamodules.benchmarks.questions import Question
from modules.files import file_hashes
from modules.metrics import mme

OFFICIAL_SUFFIX = "Please answer yes or no."
"""How questions end in the files. LLaVA and others replace it with their own suffix."""


@dataclass(frozen=True, kw_only=True)
class MmeConfig(QuestionsConfig):
    """Where the MME files are, and how questions are asked. ``limit`` counts pictures of each category."""

    source: str
    """The folder ``MME_Benchmark_release_version``, or the table ``MME.tsv``."""


class Mme(QuestionMeasure):
    """Points in each category; the headline is ``perception``, out of 2000 points."""

    key: ClassVar[str] = "mme"
    config_type = MmeConfig
    config: MmeConfig

    def read(self) -> list[Question]:
        """The questions of all categories."""
        config = self.config
        return read_mme(Path(config.source), official=config.data == "official", limit=config.limit)

    def files(self) -> list[Path]:
        """The table, or the text files of the folder."""
        return mme_files(Path(self.config.source))

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        """Add the text that the suffix replaces. One hash stands for the many files of the folder."""
        hashes = json.dumps(file_hashes(self.files()), sort_keys=True)
        files = {Path(self.config.source).name: hashlib.sha256(hashes.encode()).hexdigest()}
        return super().protocol(context) | {"suffix_replaces": OFFICIAL_SUFFIX, "files": files}

    def asked(self, question: Question) -> str:
        """The question with our suffix in place of the official one."""
        return question.question.rstrip().removesuffix(OFFICIAL_SUFFIX).rstrip() + self.config.suffix

    def is_correct(self, record: Record) -> bool:
        """Whether the answer, parsed as the official code does, equals the gold answer."""
        return bool(mme.parse(record["raw"]) == record["gold"])

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        """Score, with errors over pictures. The baseline always says yes."""
        answers = [mme.Answer(category=r["split"], image=r["image"], text=r["raw"], label=r["gold"]) for r in records]
        metrics = mme.score(answers)
        return Result(
            metrics=metrics,
            counts=mme.counts(answers, metrics),
            standard_errors=mme.standard_errors(answers),
            baselines=mme.baseline(answers),
            protocol=self.traced(context, records, baseline="always yes"),
        )
