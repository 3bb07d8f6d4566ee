"""Token sequences, written out by hand."""

import pytest

from datamodules.encode import (
    IGNORE,
    PromptTemplate,
    caption_overflow,
    encode_caption,
    encode_conversation,
    encode_question,
)
from modules.omnimamba.tokenizer import TextTokenizer

TEMPLATE = PromptTemplate()


def test_a_caption_is_left_padded(tokenizer: TextTokenizer) -> None:
    t = tokenizer
    assert encode_caption(t, "ab", 4) == [t.t2i, t.sot, t.pad, t.pad, *t.encode("ab"), t.eot, t.soi, t.eoi]


def test_a_long_caption_keeps_its_beginning(tokenizer: TextTokenizer) -> None:
    assert encode_caption(tokenizer, "abcdef", 4)[2:6] == tokenizer.encode("abcd")
    assert caption_overflow(tokenizer, "abcdef", 4) == 2
    assert caption_overflow(tokenizer, "abcd", 4) == 0


def test_a_conversation_of_two_turns(tokenizer: TextTokenizer) -> None:
    t = tokenizer
    ids, labels = encode_conversation(t, [("Q", "yes"), ("R", "no")], TEMPLATE, 40)
    first, second = t.encode("In: Q\nOut: "), t.encode("\nIn: R\nOut: ")
    yes, no = [*t.encode("yes"), t.end_of_text], [*t.encode("no"), t.end_of_text]
    text = [*first, *yes, *second, *no, t.eot]
    assert ids == [t.mmu, t.soi, t.eoi, t.sot, *text, *[t.pad] * (40 - len(text))]
    silent = [IGNORE] * len(first) + yes + [IGNORE] * len(second) + no
    assert labels == silent + [IGNORE] * (40 - len(silent))


def test_a_caption_sample_has_no_template(tokenizer: TextTokenizer) -> None:
    t = tokenizer
    ids, labels = encode_conversation(t, [("", "a dog")], TEMPLATE, 10)
    answer = [*t.encode("a dog"), t.end_of_text]
    assert ids[4:] == [*answer, t.eot, *[t.pad] * 3]
    assert labels == answer + [IGNORE] * 4


def test_a_turn_over_the_limit_goes_with_all_that_follows(tokenizer: TextTokenizer) -> None:
    turns = [("Q", "yes"), ("R", "x" * 30), ("S", "no")]
    assert encode_conversation(tokenizer, turns, TEMPLATE, 40) == encode_conversation(
        tokenizer, turns[:1], TEMPLATE, 40
    )


def test_the_limit_is_exact(tokenizer: TextTokenizer) -> None:
    # "In: Q\nOut: " has 11 ids, the answer 3 + end of text, then eot: 16
    ids, _ = encode_conversation(tokenizer, [("Q", "yes")], TEMPLATE, 16)
    assert tokenizer.pad not in ids
    with pytest.raises(ValueError, match="first turn has 16 ids but a sequence holds 15"):
        encode_conversation(tokenizer, [("Q", "yes")], TEMPLATE, 15)


def test_a_question_is_the_beginning_of_its_conversation(tokenizer: TextTokenizer) -> None:
    """What is asked in evaluation is what was trained."""
    question = encode_question(tokenizer, "Q", TEMPLATE)
    ids, _ = encode_conversation(tokenizer, [("Q", "yes")], TEMPLATE, 40)
    assert ids[: len(question)] == question


def test_the_template_is_a_setting(tokenizer: TextTokenizer) -> None:
    template = PromptTemplate(question="USER: {question} ASSISTANT: ")
    assert encode_question(tokenizer, "Q", template)[4:] == tokenizer.encode("USER: Q ASSISTANT: ")
