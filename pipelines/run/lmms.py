"""Lets lmms-eval ask a trained run the questions of its benchmarks (docs/evaluation.md):

    lmms-eval --model omnimamba --model_args run=runs/stage2_unified --tasks mmbench_en_dev --batch_size 16

The package names `manifest` as an entry point, so lmms-eval finds it. Answers are greedy, as in our own measures.
"""

import io
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from callbacks.measures.answers import answer
from datamodules.encode import encode_question
from datamodules.images import StoredImage
from pipelines.run.trained import load_trained

log = logging.getLogger(__name__)
LENGTH = 64
"""Tokens of an answer for tasks that do not say how many."""


class _Asked(NamedTuple):
    """A request of lmms-eval."""

    prompt: list[int]
    most: int
    image: StoredImage
    until: list[str]
    number: int
    """Its place among the requests."""


def manifest() -> ModelManifest:
    """What lmms-eval's entry point group ``lmms_eval.models`` asks for."""
    return ModelManifest(model_id="omnimamba", simple_class_path=f"{__name__}.OmniMambaForLmmsEval")


class OmniMambaForLmmsEval(lmms):  # type: ignore[misc]
    """A run, in one process, for tasks that let the model write an answer about one picture."""

    def __init__(self, run: str, batch_size: int | str = 1, device: str | None = None, **_: Any) -> None:
        """``device``: "cpu" or "cuda"; by default what the run was trained on."""
        super().__init__()
        kind = {"cpu": "cpu", "cuda": "gpu"}.get((device or "").split(":")[0])
        self.trained = load_trained(run, [f"hardware.accelerator={kind}"] if kind else [], draws=False)
        self.batch_size = int(batch_size)

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
                images, prompts = [each.image for each in batch], [each.prompt for each in batch]
                for each, (text, _, _) in zip(batch, answer(self.trained.context, images, prompts, most), strict=True):
                    texts[each.number] = _cut(text, each.until).strip()
        return texts

    def _asked(self, request: Any, number: int) -> _Asked:
        context, options, doc_to_visual, doc_id, task, split = request.args
        pictures = _pictures(doc_to_visual, self.task_dict[task][split][doc_id])
        if len(pictures) != 1:
            raise ValueError(f"sample {doc_id} of {task} has {len(pictures)} pictures; this model takes one, no more")
        if options.get("do_sample") or options.get("temperature"):
            log.warning("%s asks for sampling; this adapter answers greedily", task)
        template = self.trained.config.data.template
        prompt = encode_question(self.trained.tokenizer, context.replace("<image>", "").strip(), template)
        room = self.trained.model.answer_room(len(prompt))
        if room < 1:
            raise ValueError(f"the question of sample {doc_id} of {task} is {1 - room} ids too long for this model")
        until = options.get("until", [])
        stops = [until] if isinstance(until, str) else [text for text in until if text]
        most = min(room, int(options.get("max_new_tokens", LENGTH)))
        return _Asked(prompt, most, pictures[0], stops, number)

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


def _pictures(doc_to_visual: Callable[[Any], Sequence[Image.Image]], sample: Any) -> list[StoredImage]:
    """The sample's pictures in the form that our measures read."""
    found = []
    for picture in doc_to_visual(sample):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "PNG")
        found.append(StoredImage(payload=buffer.getvalue(), where="lmms-eval", name="picture.png"))
    return found


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
