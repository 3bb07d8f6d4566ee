"""Samples to token sequences, exactly as the model is trained on them.

Shapes: T text ids of an MMU sequence, C caption ids of a T2I sequence. MMU ids start with ``[mmu, soi, eoi, sot]``;
the model inserts the image between ``soi`` and ``eoi``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from modules.omnimamba.tokenizer import TextTokenizer

IGNORE = -100
"""Label of a position without loss."""


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a turn is written. The default is the template of the published model.

    A model answers worse with a template it was not trained on, so evaluation uses the run's own.
    """

    question: str = "In: {question}\nOut: "
    """A question up to its answer; holds ``{question}`` once."""
    between_turns: str = "\n"
    """Text between an answer and the next question."""

    def asked(self, question: str) -> str:
        """The template with ``question`` filled in; other braces are plain text."""
        return self.question.replace("{question}", question)


def encode_caption(tokenizer: TextTokenizer, caption: str, length: int) -> list[int]:
    """``[t2i, sot, PAD..., caption, eot, soi, eoi]``: ``length + 5`` ids, the caption left-padded to ``length``.

    The last id is placed after the image. A caption of more than ``length`` ids keeps its first ``length``. Check
    captions typed by a user with `caption_overflow` first.
    """
    ids = tokenizer.encode(caption)[:length]
    padding = [tokenizer.pad] * (length - len(ids))
    return [tokenizer.t2i, tokenizer.sot, *padding, *ids, tokenizer.eot, tokenizer.soi, tokenizer.eoi]


def caption_overflow(tokenizer: TextTokenizer, caption: str, length: int) -> int:
    """By how many ids ``caption`` exceeds ``length``; 0 when it fits."""
    return max(0, len(tokenizer.encode(caption)) - length)


def encode_question(tokenizer: TextTokenizer, question: str, template: PromptTemplate) -> list[int]:
    """Ids ``[mmu, soi, eoi, sot, question...]`` of a first question, up to the start of the answer."""
    return [*_mmu_prefix(tokenizer), *tokenizer.encode(template.asked(question))]


def _mmu_prefix(tokenizer: TextTokenizer) -> list[int]:
    return [tokenizer.mmu, tokenizer.soi, tokenizer.eoi, tokenizer.sot]


def encode_conversation(
    tokenizer: TextTokenizer,
    turns: Sequence[tuple[str, str]],
    template: PromptTemplate,
    length: int,
    *,
    pad: bool = True,
) -> tuple[list[int], list[int]]:
    """Ids (T + 4: prefix and text) and labels (T: text alone) of a conversation, T at most ``length``.

    ``turns`` are (question, answer) pairs. An empty first question makes a caption: the answer alone, without the
    template. Labels are the ids of the answers and their end tokens, and `IGNORE` elsewhere. The closing ``eot`` has
    no loss. A turn that would exceed ``length`` is dropped, with all turns after it. If it is the first turn, its
    answer is cut instead and has no end token. ``pad`` fills up to ``length`` on the right.

    Raises:
        ValueError: the first question leaves no room for an answer.
    """
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, answer) in enumerate(turns):
        prompt = template.asked(question) if question else ""
        prompt_ids = tokenizer.encode((template.between_turns if number else "") + prompt)
        answer_ids = [*tokenizer.encode(answer), tokenizer.end_of_text]
        room = length - len(ids) - len(prompt_ids) - 1
        if len(answer_ids) > room:
            if number:
                break
            if room < 1:
                raise ValueError(
                    f"the first question has {len(prompt_ids)} ids, so a sequence of {length} has no room for an "
                    "answer; raise model.mmu_text_length or leave the sample out"
                )
            answer_ids = answer_ids[:room]
        ids += prompt_ids + answer_ids
        labels += [IGNORE] * len(prompt_ids) + answer_ids
    ids.append(tokenizer.eot)
    labels.append(IGNORE)
    padding = length - len(ids) if pad else 0
    return [*_mmu_prefix(tokenizer), *ids, *[tokenizer.pad] * padding], labels + [IGNORE] * padding
