"""Loads trained weights for the verbs and scripts that use them:

    run = load_trained("runs/demo_unified")
    run.draw("a large red circle", n=4)[0].save("circle.png")
    print(run.answer("circle.png", "Is there a red circle in the image?", short=True))

A path may name four things: a run folder (its latest checkpoint), one of its checkpoint folders, a folder written by
`pipelines.export`, or a configuration file whose ``pretrained`` names published weights.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from callbacks.measures.answers import SHORT_ANSWER, stream_answer
from callbacks.measures.measure import EvaluationContext
from callbacks.measures.pictures import draw, require_vq, warn_if_never_empty
from datamodules.datasets import Samples
from datamodules.encode import encode_question
from datamodules.images import to_image
from modules import exports
from modules.adapter_files import load_adapters
from modules.checkpoints import (
    checkpoint_id,
    find_checkpoint,
    model_weights,
    read_state,
    refuse_misfit,
    weights_fingerprint,
)
from modules.files import sha256
from modules.model_files import ModelFiles
from modules.omnimamba.config import Task
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import ImageTokenizer
from modules.pretrained import load_pretrained
from modules.published import load_language
from modules.run_files import EXPORT
from modules.unheard import unheard
from modules.weight_files import SAFETENSORS, weight_files
from pipelines.run.asked import require_drawable, require_question, sampling_of, source_of
from pipelines.run.compose import agree_with_pretrained, build_tokenizer, build_vq
from pipelines.run.config import RunConfig, load
from pipelines.run.console import say, warn
from pipelines.run.data import build_validation
from pipelines.run.hardware import COMPUTE, check_hardware
from pipelines.run.overrides import ConfigError
from pipelines.run.ranks import Ranks
from pipelines.run.words import run_of, trained_file, trained_place

log = logging.getLogger(__name__)
ANSWER_LENGTH = 64
"""Default for the largest number of tokens of an answer."""
SYNC_EVERY = 8
"""Tokens between two waits for the GPU, if progress is reported."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A loaded model with its tokenizers, and the folder for its results."""

    config: RunConfig
    model: OmniMamba
    tokenizer: TextTokenizer
    vq: ImageTokenizer | None
    origin: str
    """File of the weights, and its SHA-256."""
    step: int
    """Optimizer steps of the stage the weights come from; 0 for published weights."""
    folder: Path
    files: ModelFiles
    """Hashes of its tokenizers."""

    @cached_property
    def validation(self) -> dict[Task, Samples]:
        """The samples of data.val, by task, opened here."""
        return build_validation(self.config, self.tokenizer, self.vq)

    @cached_property
    def context(self) -> EvaluationContext:
        """What a measure gets to work with, in one process."""
        return context_of(self)

    def draw(
        self, caption: str, n: int = 1, *, progress: Callable[[int, int], None] | None = None, **sampling: Any
    ) -> list[Image.Image]:
        """``n`` pictures of ``caption``. Each depends on the seed and its number alone.

        ``progress`` is called with the number of tokens that are chosen, and of all. ``sampling`` changes the run's
        own settings (see `sampling_of`).

        Raises:
            ValueError: the caption is empty or too long, a setting is out of range, or there is no image tokenizer.
        """
        settings = sampling_of(self.config, **sampling)
        require_drawable(self.config, self.tokenizer, caption)
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        warn_if_never_empty(self.context, "drawing", settings)
        on_token = unheard if progress is None else self._counted(progress)
        codes = draw(self.context, [caption] * n, range(n), settings, on_token)
        return [to_image(pixels) for pixels in require_vq(self.context).decode(codes)]

    def answer(
        self, image: str | Path | Image.Image, question: str, *, short: bool = False, max_new_tokens: int | None = None
    ) -> str:
        """The answer to ``question`` about a picture. ``short`` asks for a single word or phrase, as benchmarks do.

        Raises:
            FileNotFoundError: there is no such picture.
            ValueError: the question is empty or too long, or the picture does not decode.
        """
        return list(self.stream(image, question, short=short, max_new_tokens=max_new_tokens))[-1]

    def stream(
        self, image: str | Path | Image.Image, question: str, *, short: bool = False, max_new_tokens: int | None = None
    ) -> Iterator[str]:
        """`answer` while it grows: the text so far, after each token."""
        require_question(question, max_new_tokens)
        source = source_of(image)
        prompt = encode_question(self.tokenizer, question.strip() + SHORT_ANSWER * short, self.config.data.template)
        most = max_new_tokens or max(1, min(ANSWER_LENGTH, self.model.answer_room(len(prompt))))
        cut = False
        for text, _, truncated in stream_answer(self.context, source, prompt, most):
            cut = truncated
            yield text
        if cut:
            log.warning("the answer was cut after %d tokens; allow more, if the model has room", most)

    def _counted(self, progress: Callable[[int, int], None]) -> Callable[[], None]:
        """Reports each token, counted from 1."""
        done, of = count(1), self.model.config.image_tokens

        def report() -> None:
            token = next(done)
            # tokens are only queued on a GPU; without a wait, all would be reported at once
            if token % SYNC_EVERY == 0 and self.model.device.type == "cuda":
                torch.cuda.synchronize()
            progress(token, of)

        return report


def trained_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of what ``path`` names, with overrides. Needs no model, so it can be checked first.

    Raises:
        ConfigError: ``path`` names none of the four things, or an override is wrong.
    """
    path = trained_place(path, overrides)
    config = load(trained_file(path), overrides, tracks=False)
    if path.is_file():
        if not config.pretrained:
            raise ConfigError(
                f"{path} is a configuration without weights; name a run folder, or add pretrained=... to name weights"
            )
        return config
    return replace(config, run=replace(config.run, dir=str(run_of(path))))


def load_trained(path: str | Path, overrides: Sequence[str] = (), *, draws: bool = True) -> Trained:
    """The model that ``path`` names, in eval mode on the configuration's device; its VQ tokenizer only if it ``draws``.

    Raises:
        ConfigError: see `trained_config`.
        CheckpointError: the weights are missing or damaged, or a tokenizer is not the one they were trained with.
        ValueError: they do not match the configuration.
    """
    path = trained_place(Path(path), overrides)
    config = trained_config(path, overrides)
    here = replace(config.hardware, devices=1, threads=0)  # this machine may have fewer GPUs and cores than the run's
    check_hardware(here, deterministic=config.trainer.deterministic)
    model = OmniMamba(config.model)
    model.compute = COMPUTE[config.trainer.precision]
    tokenizer, vq = build_tokenizer(config.model), build_vq(config.model) if draws else None
    files = ModelFiles.of(tokenizer, vq)
    step, origin, known = _fill(model, path, config)
    if known is not None:
        files = files.agreed(known, str(path), config.model, warn)
    else:
        agree_with_pretrained(config, files, draws=draws)
    device = torch.device("cuda" if config.hardware.accelerator == "gpu" else "cpu")
    return Trained(
        config=config,
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        vq=vq,
        step=step,
        origin=origin,
        folder=config.folder,
        files=files,
    )


def context_of(trained: Trained, ranks: Ranks | None = None) -> EvaluationContext:
    """The evaluation context of a loaded model, in one process or several."""
    ranks = ranks or Ranks()
    return EvaluationContext(
        rank=ranks.rank,
        world_size=ranks.world_size,
        model=trained.model,
        weights=weights_fingerprint(trained.model),
        checkpoint=trained.origin,
        tokenizer=trained.tokenizer,
        vq=trained.vq,
        template=trained.config.data.template,
        device=trained.model.device,
        step=trained.step,
        folder=trained.folder,
        batch_size=trained.config.evaluation.batch_size,
        caption_dropout=trained.config.data.caption_dropout,
        validation=lambda: trained.validation,
    )


def _fill(model: OmniMamba, path: Path, config: RunConfig) -> tuple[int, str, ModelFiles | None]:
    """Load the weights that ``path`` names; return their step, their file with its hash, and what they know of
    tokenizers (None for weights that others made)."""
    if path.is_file():
        initialise(model, config.model.init_seed)
        for line in load_pretrained(model, Path(config.pretrained)):
            say(line)
        for line in load_adapters(model, config.pretrained_adapters):
            say(line)
        files = weight_files(Path(config.pretrained))
        return 0, ", ".join(f"{file.name} {sha256(file)}" for file in files), None
    if (path / EXPORT).is_file():
        language, facts = exports.read(path)
        load_language(model, language, str(path))
        if facts.get("merged"):
            warn(
                f"{path} has only the {facts['merged']} adapters folded in: what it does for another task is not what "
                "the run learnt"
            )
        origin = f"{SAFETENSORS} {facts['files'][SAFETENSORS]['sha256']}"
        return int(facts["step"]), origin, ModelFiles.stored(facts, str(path / EXPORT))
    checkpoint = find_checkpoint(path, warn)
    state = read_state(checkpoint)
    weights = model_weights(state)
    refuse_misfit(weights, {name: value.shape for name, value in model.state_dict().items()}, str(checkpoint))
    model.load_state_dict(weights)
    known = ModelFiles.stored(state.get("run", {}), str(checkpoint))
    return int(state["global_step"]), checkpoint_id(checkpoint), known
