"""The OmniMamba model: one Mamba-2 backbone, two vocabularies, one adapter per task (arXiv 2503.08686, section 3).

Shapes: B batch, L positions of one sequence, R positions of a row, D d_model, V vocabulary, M labelled positions,
T text ids, C caption ids, I image tokens, F features per image.

A training row holds all sequences of a micro-batch one behind the other, MMU before T2I, told apart by ``seq_idx``:
one forward pass serves both tasks, and conv and scan start afresh at each sequence.
"""

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from modules.omnimamba.adapters import TASKS, Segments, Task, segments_of
from modules.omnimamba.backbone import Backbone, BackboneState
from modules.omnimamba.config import ModelConfig
from modules.omnimamba.decoding import Decoder
from modules.omnimamba.embeddings import CaptionProjection, Mlp
from modules.omnimamba.sampling import choose
from modules.omnimamba.vision import build_vision

P = ParamSpec("P")
R = TypeVar("R")

Batch = Mapping[Task, Mapping[str, Any]]
"""Per task: mmu ``images`` uint8 (B, 3, S, S) or ``features`` (B, F, W), ``input_ids`` (B, T+4), ``labels`` (B, T), and
may have ``labelled`` (M,), the places in (B*T) that carry a label, and where rows are of different length a list
``lengths`` of how many of its ``input_ids`` each has; t2i ``caption_ids`` (B, C+5), ``image_ids`` (B, I)."""

IGNORE = -100
"""Label of a position on which no loss is taken."""
MMU_HEAD, MMU_TAIL = 2, 2
"""Special ids before the image (mmu, soi) and between image and text (eoi, sot)."""


class Labelled(NamedTuple):
    """Logits (M, V) of the positions that carry a label, and the labels (M,).

    A tuple, because ZeRO 3 looks for tensors in what a module returns and would not find them in a class.
    """

    logits: Tensor
    labels: Tensor


def _in_its_precision(method: Callable[Concatenate["OmniMamba", P], R]) -> Callable[Concatenate["OmniMamba", P], R]:
    """Run a method of the model under autocast to its compute type.

    Entered anew in every call, so that no weight cast before an optimizer step is used after it.
    """

    @wraps(method)
    def run(model: "OmniMamba", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(model.device.type, model.compute, enabled=model.compute != torch.float32):
            return method(model, *args, **kwargs)

    return run


class OmniMamba(nn.Module):
    """The whole model. Weights are set by `initialise.initialise` or loaded; until then they are arbitrary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        shared = config.vocabularies == "shared"
        rows = config.vocab_size + (config.image_vocab if shared else 0)
        self.text_embedding = nn.Embedding(rows, config.d_model)
        self.image_table = None if shared else nn.Embedding(config.image_vocab, config.d_model)
        self.image_mlp = Mlp(config.d_model, config.image_mlp_hidden, config.d_model)
        self.caption_projection = CaptionProjection(config.d_model)
        self.t2i_positions = nn.Parameter(torch.zeros(config.t2i_positions, config.d_model))
        self.mmu_positions = nn.Parameter(torch.zeros(config.mmu_positions, config.d_model))
        self.vision = build_vision(config.vision)
        self.projector = Mlp(config.vision.width, config.projector_hidden, config.d_model)
        self.backbone = Backbone(config)
        self.compute = torch.float32
        """Type of matrix products and what flows between them; parameters, norms, residual and the scan's own
        parameters stay in float32 (``bfloat16`` by autocast)."""

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.text_embedding.weight.device

    @_in_its_precision
    def forward(self, batch: Batch) -> dict[Task, Labelled]:
        """Logits and labels of each task of a micro-batch, by one pass over one row."""
        embedded = {task: self.embed(task, batch[task]) for task in TASKS if task in batch}
        lengths = {task: self._lengths(x, batch[task]) for task, x in embedded.items()}
        hidden = self._run_row(embedded, lengths)
        return {task: self._labelled(task, hidden[task], batch[task]) for task in embedded}

    @_in_its_precision
    def logits(self, task: Task, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits of every position of one task's sequences, (B, L, V)."""
        x = self.embed(task, batch)
        return self.head(task, self._run_row({task: x}, {task: self._lengths(x, batch)})[task])

    def embed(self, task: Task, batch: Mapping[str, Tensor]) -> Tensor:
        """Input embeddings of one task's sequences, positions added, (B, L, D)."""
        if task == "t2i":
            return self._embed_t2i(batch["caption_ids"], batch["image_ids"])
        features = batch["features"] if "features" in batch else self.vision(batch["images"])
        return self._embed_mmu(features, batch["input_ids"])

    def head(self, task: Task, hidden: Tensor) -> Tensor:
        """(..., D) to logits (..., V): the task's tied table, or the shared one."""
        if task == "t2i" and self.image_table is not None:
            return F.linear(hidden, self.image_table.weight)
        return F.linear(hidden, self.text_embedding.weight)

    @torch.no_grad()
    def generate_text(self, images: Tensor, prompt_ids: Tensor, *, max_new_tokens: int, end_id: int) -> Tensor:
        """Greedy answers (B, n), n <= ``max_new_tokens``; a row is filled with ``end_id`` behind its first one.

        ``images`` is uint8 (B, 3, S, S); the rows of ``prompt_ids`` (B, T+4) are of equal length, because a state-space
        model sees padding.
        """
        return self.continue_text(self.vision(images), prompt_ids, max_new_tokens=max_new_tokens, end_id=end_id)

    @torch.no_grad()
    def continue_text(self, features: Tensor, prompt_ids: Tensor, *, max_new_tokens: int, end_id: int | None) -> Tensor:
        """`generate_text` from vision features (B, F, W); without ``end_id`` every row gets all its tokens.

        Raises:
            ValueError: prompt and answer together pass the learned positions.
            NotFiniteError: what the model computes is no number.
        """
        room = self.answer_room(prompt_ids.shape[1])
        if room < 1:
            raise ValueError(
                f"a prompt of {prompt_ids.shape[1]} ids and {self.config.vision.patches} image features leaves no room "
                f"for an answer in the model's {len(self.mmu_positions)} MMU positions; shorten the question"
            )
        if max_new_tokens > room:
            raise ValueError(
                f"max_new_tokens={max_new_tokens}, but behind this prompt the model's {len(self.mmu_positions)} MMU "
                f"positions leave room for {room}; ask for fewer, or shorten the question"
            )
        hidden, state = self._prefill("mmu", lambda: self._embed_mmu(features, prompt_ids))
        decoder = self._decoder("mmu")
        first = features.shape[1] + prompt_ids.shape[1]
        done = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        tokens: list[Tensor] = []
        for position in range(first, first + max_new_tokens):
            token = decoder.choose(hidden)
            if end_id is not None:
                token = token.masked_fill(done, end_id)
                done |= token == end_id
            tokens.append(token)
            if len(tokens) == max_new_tokens or bool(done.all()):
                break
            hidden = decoder.step(token, self.mmu_positions[position], state)
        decoder.check(hidden)
        return torch.stack(tokens, dim=1)

    def answer_room(self, prompt_length: int) -> int:
        """Most tokens that an answer to a prompt of so many ids can have; the last one needs no position."""
        return len(self.mmu_positions) - self.config.vision.patches - prompt_length + 1

    @torch.no_grad()
    def generate_image_ids(
        self,
        caption_ids: Tensor,
        *,
        uniforms: Tensor | None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """VQ codes (B, I) for captions (B, C+5): greedy, or the inverse CDF at ``uniforms`` (B, I) in [0, 1)."""
        start = caption_ids.shape[1] - 1
        hidden, state = self._prefill("t2i", lambda: self._caption(caption_ids[:, :-1]) + self.t2i_positions[:start])
        return self._decoder("t2i").draw(
            hidden,
            state,
            start=start,
            count=self.config.image_tokens,
            uniforms_BI=uniforms,
            pick=partial(choose, temperature=temperature, top_k=top_k, top_p=top_p),
        )

    @_in_its_precision
    def _prefill(self, task: Task, embed: Callable[[], Tensor]) -> tuple[Tensor, BackboneState]:
        """The last hidden states (B, D) of a prompt, and what later positions need of it."""
        x = embed()
        state: BackboneState = []
        hidden: Tensor = self.backbone(x, segments_of(task, x.shape[1]), state=state)[:, -1]
        return hidden, state

    def _decoder(self, task: Task) -> Decoder:
        """The task's weights, ready for single tokens."""
        if task == "mmu":
            inputs, positions = self.text_embedding.weight, self.mmu_positions
            head = inputs[: self.config.vocab_size]
        else:
            inputs = self._image_inputs()
            positions = self.t2i_positions
            shared = self.text_embedding.weight[self.config.vocab_size :]
            head = shared if self.image_table is None else self.image_table.weight
        return Decoder(self.backbone, task, self.compute, inputs_UD=inputs, head_VD=head, positions_PD=positions)

    @_in_its_precision
    def _image_inputs(self) -> Tensor:
        """Embeddings of all image tokens, (V, D)."""
        return self._image(torch.arange(self.config.image_vocab, device=self.device))

    @staticmethod
    def _lengths(x: Tensor, batch: Mapping[str, Any]) -> list[int]:
        """Positions of each of the sequences ``x`` (B, L, D) without padding that is only there to stack them."""
        if "lengths" not in batch:
            return [x.shape[1]] * x.shape[0]
        besides = x.shape[1] - batch["input_ids"].shape[1]
        return [besides + length for length in batch["lengths"]]

    def _run_row(self, embedded: Mapping[Task, Tensor], lengths: Mapping[Task, list[int]]) -> dict[Task, Tensor]:
        """Run all sequences as one row and hand each task its hidden states back, (B, L, D)."""
        row = torch.cat([_one_behind_the_other(x, lengths[task]) for task, x in embedded.items()])[None]
        numbers = enumerate(n for task in embedded for n in lengths[task])
        seq_idx = torch.cat([torch.full((n,), i, dtype=torch.int32, device=row.device) for i, n in numbers])[None]
        mmu, t2i = (sum(lengths.get(task, [])) for task in TASKS)
        segments: Segments = (mmu, t2i)
        hidden = self.backbone(row, segments, seq_idx)[0].split([sum(lengths[task]) for task in embedded])
        return {task: _stacked(h, lengths[task]) for task, h in zip(embedded, hidden, strict=True)}

    def _labelled(self, task: Task, hidden: Tensor, batch: Mapping[str, Tensor]) -> Labelled:
        """A label is predicted from the position before it."""
        if task == "t2i":
            labels = batch["image_ids"].long()
            start = batch["caption_ids"].shape[1] - 2
            logits = self.head(task, hidden[:, start : start + labels.shape[1]].flatten(0, 1))
            return Labelled(logits, labels.flatten() + (self.config.vocab_size if self.image_table is None else 0))
        labels = batch["labels"].long()
        hidden = hidden[:, -labels.shape[1] - 1 : -1].flatten(0, 1)
        labels = labels.flatten()
        # where the labels stand is known when the batch is made; to ask a GPU would be to wait for it
        chosen = batch["labelled"] if "labelled" in batch else (labels != IGNORE).nonzero()[:, 0]
        return Labelled(self.head(task, hidden[chosen]), labels[chosen])

    def _caption(self, ids: Tensor) -> Tensor:
        x: Tensor = self.caption_projection(self.text_embedding(ids))
        return x

    def _image(self, codes: Tensor) -> Tensor:
        rows = (
            self.text_embedding(codes + self.config.vocab_size) if self.image_table is None else self.image_table(codes)
        )
        x: Tensor = self.image_mlp(rows)
        return x

    def _embed_t2i(self, caption_ids: Tensor, image_ids: Tensor) -> Tensor:
        before, after = self._caption(caption_ids[:, :-1]), self._caption(caption_ids[:, -1:])
        x = torch.cat([before, self._image(image_ids), after], dim=1)
        self._check_room("t2i_positions", x.shape[1])
        return x + self.t2i_positions[: x.shape[1]]

    def _embed_mmu(self, features: Tensor, input_ids: Tensor) -> Tensor:
        text = self.text_embedding(input_ids)
        image = self.projector(features)
        x = torch.cat([text[:, :MMU_HEAD], image, text[:, MMU_HEAD:]], dim=1)
        self._check_room("mmu_positions", x.shape[1])
        return x + self.mmu_positions[: x.shape[1]]

    def _check_room(self, name: str, needed: int) -> None:
        have = len(getattr(self, name))
        if needed > have:
            raise ValueError(
                f"a sequence of {needed} positions exceeds model.{name}={have}; shorten the text or raise it"
            )


def _one_behind_the_other(x: Tensor, lengths: list[int]) -> Tensor:
    """The first ``lengths`` positions of sequences (B, L, D) as one, (R, D)."""
    if min(lengths) == x.shape[1]:
        return x.flatten(0, 1)
    return torch.cat([sequence[:n] for sequence, n in zip(x, lengths, strict=True)])


def _stacked(x: Tensor, lengths: list[int]) -> Tensor:
    """The opposite: (R, D) to sequences (B, L, D), filled up with zeros to the longest."""
    if len(set(lengths)) == 1:
        return x.reshape(len(lengths), lengths[0], x.shape[1])
    return pad_sequence(list(torch.split(x, lengths)), batch_first=True)
