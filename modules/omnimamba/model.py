"""The OmniMamba model: one Mamba-2 backbone, two vocabularies, one adapter per task (arXiv 2503.08686, section 3).

Shapes, used as name suffixes: B batch, L positions of one sequence, R positions of a row, D d_model, V vocabulary,
M labelled positions, T text ids, N prompt ids, C caption ids, I image tokens, F features per image, W their width,
S pixels of a side.

A training row holds all sequences of a micro-batch one after the other, MMU before T2I, separated by ``seq_idx``. One
forward pass serves both tasks, and convolution and scan start over at each sequence.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.omnimamba.adapters import Segments, segments_of
from modules.omnimamba.backbone import Backbone, BackboneState
from modules.omnimamba.config import TASKS, ModelConfig, Task
from modules.omnimamba.decoding import Decoder
from modules.omnimamba.embeddings import CaptionProjection, Mlp
from modules.omnimamba.rows import concatenated, stacked
from modules.omnimamba.sampling import Pick, choose, pick_guided
from modules.omnimamba.vision import build_vision
from modules.unheard import unheard

P = ParamSpec("P")
R = TypeVar("R")

Batch = Mapping[Task, Mapping[str, Any]]
"""Inputs per task.

mmu: ``images`` uint8 (B, 3, S, S) or ``features`` (B, F, W), ``input_ids`` (B, T+4), ``labels`` (B, T). Optional:
``labelled`` (M,), the indices into (B*T) that have a label, and ``lengths``, a list of how many of its ``input_ids``
each row has, if rows differ in length.

t2i: ``caption_ids`` (B, C+5), ``image_ids`` (B, I).
"""

IGNORE = -100
"""Label of a position that has no loss."""
MMU_HEAD, MMU_TAIL = 2, 2
"""Special ids before the image (mmu, soi) and between image and text (eoi, sot)."""


class Labelled(NamedTuple):
    """Logits (M, V) of the positions that have a label, and the labels (M,).

    A tuple, because ZeRO 3 looks for tensors in a module's outputs and does not look inside classes.
    """

    logits: Tensor
    labels: Tensor


def _in_its_precision(method: Callable[Concatenate["OmniMamba", P], R]) -> Callable[Concatenate["OmniMamba", P], R]:
    """Run a method of the model under autocast to its compute type.

    Every call enters autocast again, so that no cast weight is reused after an optimizer step.
    """

    @wraps(method)
    def run(model: "OmniMamba", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(model.device.type, model.compute, enabled=model.compute != torch.float32):
            return method(model, *args, **kwargs)

    return run


class OmniMamba(nn.Module):
    """The whole model. Weights are arbitrary until `initialise.initialise` sets them or they are loaded."""

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
        """Type of matrix products and activations. With ``bfloat16``, autocast casts; parameters, norms, the residual
        and the scan's own parameters stay in float32."""

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.text_embedding.weight.device

    @_in_its_precision
    def forward(self, batch: Batch) -> dict[Task, Labelled]:
        """Logits and labels of each task of a micro-batch, from one pass over one row."""
        embedded = {task: self.embed(task, batch[task]) for task in TASKS if task in batch}
        lengths = {task: self._lengths(x_BLD, batch[task]) for task, x_BLD in embedded.items()}
        hidden = self._run_row(embedded, lengths)
        return {task: self._labelled(task, hidden[task], batch[task]) for task in embedded}

    @_in_its_precision
    def logits(self, task: Task, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits of every position of one task's sequences, (B, L, V)."""
        x_BLD = self.embed(task, batch)
        return self.head(task, self._run_row({task: x_BLD}, {task: self._lengths(x_BLD, batch)})[task])

    def embed(self, task: Task, batch: Mapping[str, Tensor]) -> Tensor:
        """Input embeddings of one task's sequences with positions added, (B, L, D)."""
        if task == "t2i":
            return self._embed_t2i(batch["caption_ids"], batch["image_ids"])
        features_BFW = batch["features"] if "features" in batch else self.vision(batch["images"])
        return self._embed_mmu(features_BFW, batch["input_ids"])

    def head(self, task: Task, hidden: Tensor) -> Tensor:
        """(..., D) to logits (..., V): the task's tied table, or the shared one."""
        if task == "t2i" and self.image_table is not None:
            return F.linear(hidden, self.image_table.weight)
        return F.linear(hidden, self.text_embedding.weight)

    @torch.no_grad()
    def generate_text(self, images_B3SS: Tensor, prompt_ids_BN: Tensor, *, max_new_tokens: int, end_id: int) -> Tensor:
        """Greedy answers (B, n), n <= ``max_new_tokens``. After its first ``end_id``, a row holds only ``end_id``.

        ``images_B3SS`` is uint8. Prompts must have equal length: a state-space model sees padding.
        """
        features_BFW = self.vision(images_B3SS)
        return self.continue_text(features_BFW, prompt_ids_BN, max_new_tokens=max_new_tokens, end_id=end_id)

    def continue_text(
        self, features_BFW: Tensor, prompt_ids_BN: Tensor, *, max_new_tokens: int, end_id: int | None
    ) -> Tensor:
        """`generate_text` from vision features; see `stream_text`."""
        ids = self.stream_text(features_BFW, prompt_ids_BN, max_new_tokens=max_new_tokens, end_id=end_id)
        return torch.stack(list(ids), dim=1)

    @torch.no_grad()
    def stream_text(
        self, features_BFW: Tensor, prompt_ids_BN: Tensor, *, max_new_tokens: int, end_id: int | None
    ) -> Iterator[Tensor]:
        """The tokens (B,) of `continue_text`, one after the other; without ``end_id`` every row gets all of them.

        Raises:
            ValueError: prompt and answer together exceed the learned positions.
            NotFiniteError: the model computes non-finite numbers.
        """
        room = self.answer_room(prompt_ids_BN.shape[1])
        if room < 1:
            raise ValueError(
                f"a prompt of {prompt_ids_BN.shape[1]} ids and {self.config.vision.patches} image features leaves no "
                f"room for an answer in the model's {len(self.mmu_positions)} MMU positions; shorten the question"
            )
        if max_new_tokens > room:
            raise ValueError(
                f"max_new_tokens={max_new_tokens}, but after this prompt the model's {len(self.mmu_positions)} MMU "
                f"positions leave room for {room}; ask for fewer, or shorten the question"
            )
        hidden_BD, state = self._prefill("mmu", lambda: self._embed_mmu(features_BFW, prompt_ids_BN))
        decoder = self._decoder("mmu")
        first = features_BFW.shape[1] + prompt_ids_BN.shape[1]
        done_B = torch.zeros(len(hidden_BD), dtype=torch.bool, device=hidden_BD.device)
        last = first + max_new_tokens - 1
        for position in range(first, last + 1):
            token_B = decoder.choose(hidden_BD)
            if end_id is not None:
                token_B = token_B.masked_fill(done_B, end_id)
                done_B |= token_B == end_id
            yield token_B
            if position == last or bool(done_B.all()):
                break
            hidden_BD = decoder.step(token_B, self.mmu_positions[position], state)
        decoder.check(hidden_BD)

    def answer_room(self, prompt_length: int) -> int:
        """How many tokens an answer to a prompt of ``prompt_length`` ids can have; the last one needs no position."""
        return len(self.mmu_positions) - self.config.vision.patches - prompt_length + 1

    @torch.no_grad()
    def generate_image_ids(
        self,
        caption_ids_BC: Tensor,
        *,
        uniforms_BI: Tensor | None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        empty_ids_C: Tensor | None = None,
        on_token: Callable[[], None] = unheard,
    ) -> Tensor:
        """VQ codes (B, I) of captions (B, C+5): greedy, or by the inverse CDF at ``uniforms_BI``, in [0, 1).

        ``guidance`` other than 1 needs ``empty_ids_C``, an empty caption, and draws each picture in two rows: one reads
        the caption, the other the empty one. See `sampling.guided`. ``on_token`` is called after each token.
        """
        start, drawn = caption_ids_BC.shape[1] - 1, len(caption_ids_BC)
        pick: Pick = partial(choose, temperature=temperature, top_k=top_k, top_p=top_p)
        if guidance != 1:
            assert empty_ids_C is not None
            caption_ids_BC = torch.cat([caption_ids_BC, empty_ids_C.expand_as(caption_ids_BC)])
            pick = partial(pick_guided, pick, guidance)
        hidden_BD, state = self._prefill(
            "t2i", lambda: self._caption(caption_ids_BC[:, :-1]) + self.t2i_positions[:start]
        )
        draw = partial(self._decoder("t2i").draw, start=start, count=self.config.image_tokens, uniforms_BI=uniforms_BI)
        return draw(hidden_BD, state, pick=pick, on_token=on_token)[:drawn]

    @_in_its_precision
    def _prefill(self, task: Task, embed: Callable[[], Tensor]) -> tuple[Tensor, BackboneState]:
        """The last hidden states (B, D) of a prompt, and the state that later positions need."""
        x_BLD = embed()
        state: BackboneState = []
        hidden_BD: Tensor = self.backbone(x_BLD, segments_of(task, x_BLD.shape[1]), state=state)[:, -1]
        return hidden_BD, state

    def _decoder(self, task: Task) -> Decoder:
        """The task's weights, prepared for single tokens."""
        if task == "mmu":
            inputs_UD, positions_PD = self.text_embedding.weight, self.mmu_positions
            head_VD = inputs_UD[: self.config.vocab_size]
        else:
            inputs_UD, positions_PD = self._image_inputs(), self.t2i_positions
            shared_VD = self.text_embedding.weight[self.config.vocab_size :]
            head_VD = shared_VD if self.image_table is None else self.image_table.weight
        return Decoder(
            self.backbone, task, self.compute, inputs_UD=inputs_UD, head_VD=head_VD, positions_PD=positions_PD
        )

    @_in_its_precision
    def _image_inputs(self) -> Tensor:
        """Embeddings of all image tokens, (V, D)."""
        return self._image(torch.arange(self.config.image_vocab, device=self.device))

    @staticmethod
    def _lengths(x_BLD: Tensor, batch: Mapping[str, Any]) -> list[int]:
        """Number of positions of each sequence in ``x_BLD``, without padding at the end."""
        if "lengths" not in batch:
            return [x_BLD.shape[1]] * x_BLD.shape[0]
        besides = x_BLD.shape[1] - batch["input_ids"].shape[1]
        return [besides + length for length in batch["lengths"]]

    def _run_row(self, embedded: Mapping[Task, Tensor], lengths: Mapping[Task, list[int]]) -> dict[Task, Tensor]:
        """Run all sequences as one row; return each task's hidden states, (B, L, D)."""
        row_1RD = torch.cat([concatenated(x_BLD, lengths[task]) for task, x_BLD in embedded.items()])[None]
        every = [n for task in embedded for n in lengths[task]]
        mmu, t2i = (sum(lengths.get(task, [])) for task in TASKS)
        segments: Segments = (mmu, t2i)
        hidden_RD = self.backbone.run_row(row_1RD, segments, every, self.compute)
        parts = torch.split(hidden_RD, [sum(lengths[task]) for task in embedded])
        return {task: stacked(part_RD, lengths[task]) for task, part_RD in zip(embedded, parts, strict=True)}

    def _labelled(self, task: Task, hidden_BLD: Tensor, batch: Mapping[str, Tensor]) -> Labelled:
        """Logits and labels; a label is predicted from the position before it."""
        if task == "t2i":
            codes_BI = batch["image_ids"].long()
            start = batch["caption_ids"].shape[1] - 2
            logits_MV = self.head(task, hidden_BLD[:, start : start + codes_BI.shape[1]].flatten(0, 1))
            return Labelled(logits_MV, codes_BI.flatten() + (self.config.vocab_size if self.image_table is None else 0))
        labels_BT = batch["labels"].long()
        before_BTD = hidden_BLD[:, -labels_BT.shape[1] - 1 : -1]
        # the places of labels are known when the batch is made; finding them here would wait for the GPU
        places_M = batch["labelled"] if "labelled" in batch else (labels_BT.flatten() != IGNORE).nonzero()[:, 0]
        return Labelled(self.head(task, before_BTD.flatten(0, 1)[places_M]), labels_BT.flatten()[places_M])

    def _caption(self, ids_BL: Tensor) -> Tensor:
        x_BLD: Tensor = self.caption_projection(self.text_embedding(ids_BL))
        return x_BLD

    def _image(self, codes: Tensor) -> Tensor:
        """Codes (..., I) to their embeddings (..., I, D)."""
        own = self.image_table
        rows = self.text_embedding(codes + self.config.vocab_size) if own is None else own(codes)
        x: Tensor = self.image_mlp(rows)
        return x

    def _embed_t2i(self, caption_ids_BC: Tensor, image_ids_BI: Tensor) -> Tensor:
        before, after = self._caption(caption_ids_BC[:, :-1]), self._caption(caption_ids_BC[:, -1:])
        x_BLD = torch.cat([before, self._image(image_ids_BI), after], dim=1)
        self._check_room("t2i_positions", x_BLD.shape[1])
        return x_BLD + self.t2i_positions[: x_BLD.shape[1]]

    def _embed_mmu(self, features_BFW: Tensor, input_ids_BN: Tensor) -> Tensor:
        text_BND = self.text_embedding(input_ids_BN)
        image_BFD = self.projector(features_BFW)
        x_BLD = torch.cat([text_BND[:, :MMU_HEAD], image_BFD, text_BND[:, MMU_HEAD:]], dim=1)
        self._check_room("mmu_positions", x_BLD.shape[1])
        return x_BLD + self.mmu_positions[: x_BLD.shape[1]]

    def _check_room(self, name: str, needed: int) -> None:
        have = len(getattr(self, name))
        if needed > have:
            raise ValueError(
                f"a sequence of {needed} positions exceeds model.{name}={have}; shorten the text or raise it"
            )
