"""Lets lmms-eval ask a trained run the questions of its benchmarks (docs/evaluation.md):

    lmms-eval --model omnimamba --model_args run=runs/stage2_unified --tasks mmbench_en_dev --batch_size 16

The package names `manifest` as an entry point, so lmms-eval finds it. Answers are greedy, as in our own measures.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from callbacks.measures.answers import answer
from datamodules.encode import encode_question
from datamodules.images import ImageSource
from pipelines.run.asked import source_of
from pipelines.run.trained import ANSWER_LENGTH, load_trained

log = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """A request of lmms-eval. Its picture is read when it is answered: all of them may not fit into memory."""

    prompt: list[int]
    most: int
    picture: Callable[[], ImageSource]
    until: list[str]
    number: int
    """Its place among the requests."""


def manifest() -> ModelManifest:
    """What lmms-eval's entry point group ``lmms_eval.models`` asks for."""
    return ModelManifest(model_id="omnimamba", simple_class_path=f"{__name__}.OmniMambaForLmmsEval")


class OmniMambaForLmmsEval(lmms):  # type: ignore[misc]
    """A run, in one process, for tasks that let the model write an answer about one picture."""

    def __init__(
        self, run: str, batch_size: int | str = 1, device: str | None = None, max_batch_size: Any = None
    ) -> None:
        """``device``: "cpu" or "cuda"; by default what the run was trained on. ``max_batch_size`` is lmms-eval's own.

        Raises:
            ValueError: ``batch_size`` or ``device`` is of another kind; see also `load_trained`.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(
                f"batch_size={batch_size} must be a whole number from 1 on; this adapter does not guess it"
            )
        kinds = {"cpu": ["hardware.accelerator=cpu"], "cuda": ["hardware.accelerator=gpu"], "": []}
        kind = (device or "").split(":")[0]
        if kind not in kinds:
            raise ValueError(f"device={device} is not known; cpu and cuda are")
        self.trained = load_trained(run, kinds[kind], draws=False)
        self.batch_size = int(batch_size)
        self._warned: set[str] = set()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests, each cut before the first of its stop texts.

        Raises:
            ValueError: a sample has no picture or several, or its question is too long.
        """
        asked = sorted((self._asked(request, i) for i, request in enumerate(requests)), key=_alike)
        texts = [""] * len(asked)
        # a batch only holds prompts of equal length: a state-space model sees padding
        for (_, most), group in groupby(asked, key=_alike):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                batch = alike[start : start + self.batch_size]
                images, prompts = [each.picture() for each in batch], [each.prompt for each in batch]
                for each, (text, _, _) in zip(batch, answer(self.trained.context, images, prompts, most), strict=True):
                    texts[each.number] = _cut(text, each.until).strip()
        return texts

    def _asked(self, request: Any, number: int) -> _Asked:
        context, options, doc_to_visual, doc_id, task, split = request.args

        def picture() -> ImageSource:
            found = doc_to_visual(self.task_dict[task][split][doc_id])
            if len(found) != 1:
                raise ValueError(f"sample {doc_id} of {task} has {len(found)} pictures; this model takes one, no more")
            return source_of(found[0])

        if (options.get("do_sample") or options.get("temperature")) and task not in self._warned:
            self._warned.add(task)
            log.warning("%s asks for sampling; this adapter answers greedily", task)
        template = self.trained.config.data.template
        prompt = encode_question(self.trained.tokenizer, context.replace("<image>", "").strip(), template)
        room = self.trained.model.answer_room(len(prompt))
        if room < 1:
            raise ValueError(f"the question of sample {doc_id} of {task} is {1 - room} ids too long for this model")
        until = options.get("until") or []
        stops = [text for text in ([until] if isinstance(until, str) else until) if text]
        most = min(room, int(options.get("max_new_tokens", ANSWER_LENGTH)))
        return _Asked(prompt, most, picture, stops, number)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("omnimamba answers in words; choose a task of the kind generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("omnimamba answers one question at a time; choose a task of one round")


def _alike(asked: _Asked) -> tuple[int, int]:
    return len(asked.prompt), asked.most


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
