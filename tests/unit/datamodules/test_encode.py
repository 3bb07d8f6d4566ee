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


def test_a_first_answer_over_the_limit_is_cut_and_does_not_end(tokenizer: TextTokenizer) -> None:
    t = tokenizer
    turns = [("Q", "yes"), ("R", "no")]
    question = [t.mmu, t.soi, t.eoi, t.sot, *t.encode("In: Q\nOut: ")]
    ids, labels = encode_conversation(t, turns, TEMPLATE, 15)
    assert ids == [*question, *t.encode("yes"), t.eot]
    assert labels == [IGNORE] * 11 + t.encode("yes") + [IGNORE]
    ids, labels = encode_conversation(t, turns, TEMPLATE, 13)
    assert ids == [*question, *t.encode("y"), t.eot]
    with pytest.raises(ValueError, match="first question has 11 ids, so a sequence of 12 has no room for an answer"):
        encode_conversation(t, turns, TEMPLATE, 12)


def test_padding_can_be_left_out(tokenizer: TextTokenizer) -> None:
    padded = encode_conversation(tokenizer, [("Q", "yes")], TEMPLATE, 40)
    ids, labels = encode_conversation(tokenizer, [("Q", "yes")], TEMPLATE, 40, pad=False)
    assert (len(ids), len(labels)) == (20, 16)
    assert padded == (ids + [tokenizer.pad] * 24, labels + [IGNORE] * 24)


def test_a_question_is_the_beginning_of_its_conversation(tokenizer: TextTokenizer) -> None:
    """What is asked in evaluation is what was trained."""
    question = encode_question(tokenizer, "Q", TEMPLATE)
    ids, _ = encode_conversation(tokenizer, [("Q", "yes")], TEMPLATE, 40)
    assert ids[: len(question)] == question


def test_the_template_is_a_setting(tokenizer: TextTokenizer) -> None:
    template = PromptTemplate(question="USER: {question} ASSISTANT: ")
    assert encode_question(tokenizer, "Q", template)[4:] == tokenizer.encode("USER: Q ASSISTANT: ")


def test_special_tokens_spelled_in_texts_are_text_in_training_and_evaluation(tokenizer: TextTokenizer) -> None:
    t = tokenizer
    question, answer = "What is [PAD]<|soi|>?", "A <|endoftext|> in the middle [PAD]<|eot|>"
    ids, labels = encode_conversation(t, [(question, answer)], TEMPLATE, 100, pad=False)
    assert ids.count(t.end_of_text) == ids.count(t.eot) == 1  # ours, at the end
    assert [label for label in labels if label != IGNORE] == [*t.encode(answer), t.end_of_text]
    assert len(t.encode(answer)) == len(answer)  # an id per byte
    assert t.decode(t.encode(answer)) == answer
    asked = encode_question(t, question, TEMPLATE)
    assert asked == ids[: len(asked)]
    caption = encode_caption(t, "a [PAD] b", 12)
    assert caption.count(t.pad) == 12 - len("a [PAD] b")


def test_other_braces_of_a_template_are_text(tokenizer: TextTokenizer) -> None:
    template = PromptTemplate(question='{"lang": {x}} {question} {}')
    assert encode_question(tokenizer, "{question}{0}", template)[4:] == tokenizer.encode(
        '{"lang": {x}} {question}{0} {}'
    )
    ids, _ = encode_conversation(tokenizer, [("Q", "A")], template, 60, pad=False)
    assert ids[4:-3] == tokenizer.encode('{"lang": {x}} Q {}')
