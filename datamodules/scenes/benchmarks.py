"""POPE-style and GQA-style questions about the validation scenes, in the layout of the official files."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

from datamodules.scenes.dice import Dice
from datamodules.scenes.draw import Scene
from datamodules.scenes.language import NAMES, presence_text, present_names
from datamodules.scenes.questions import KINDS, Question, questions

POPE_SPLITS = ("random", "popular", "adversarial")

Choice = Callable[[Scene, list[str], Dice], str]
"""Picks one of several names of absent objects."""


def pope(scenes: Mapping[str, Scene], seed: int) -> dict[str, list[dict[str, Any]]]:
    """The lines of the three POPE files; ``scenes`` is keyed by image file name.

    As in the official files, there are six questions per image. The answer to every other one is no, and all three
    files have the same positive questions. Each kind of name (shape, colour, both) is asked about once with a present
    and once with an absent name, so that the kind alone tells nothing. The absent name is drawn at random
    (``random``), is the most frequent in the data set (``popular``), or is the easiest to confuse (``adversarial``):
    it shares the most words with the names present. Ties go to the name that occurs with them most often.
    """
    frequency = Counter(name for scene in scenes.values() for name in present_names(scene))
    together = Counter(pair for scene in scenes.values() for pair in permutations(present_names(scene), 2))

    def popular(scene: Scene, absent: list[str], dice: Dice) -> str:
        return max(absent, key=lambda name: (frequency[name], name))

    def adversarial(scene: Scene, absent: list[str], dice: Dice) -> str:
        present = present_names(scene)
        words = {word for name in present for word in name.split()}

        def likeness(name: str) -> tuple[int, int, str]:
            return sum(word in words for word in name.split()), sum(together[name, other] for other in present), name

        return max(absent, key=likeness)

    choices: tuple[Choice, ...] = (lambda scene, absent, dice: dice.pick(absent), popular, adversarial)
    return {split: _pope_lines(scenes, seed, choose) for split, choose in zip(POPE_SPLITS, choices, strict=True)}


def _pope_lines(scenes: Mapping[str, Scene], seed: int, choose: Choice) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for image, scene in scenes.items():
        present = present_names(scene)
        positive, negative = Dice("pope", seed, image, "yes"), Dice("pope", seed, image, "no")
        for kind in positive.shuffled(list(NAMES.values())):
            there = positive.pick([name for name in kind if name in present])
            missing = choose(scene, [name for name in kind if name not in present], negative)
            for name, label in ((there, "yes"), (missing, "no")):
                line = {"question_id": len(lines) + 1, "image": image, "text": presence_text(name), "label": label}
                lines.append(line)
    return lines


def gqa(
    scenes: Mapping[str, Scene], seed: int, per_image: int, kinds: Sequence[str] = KINDS
) -> dict[str, dict[str, Any]]:
    """GQA entries by question id; ``scenes`` is keyed by image id."""
    entries: dict[str, dict[str, Any]] = {}
    for number, (image_id, scene) in enumerate(scenes.items(), start=1):
        dice = Dice("gqa", seed, image_id)
        chosen = some_questions(scene, dice, per_image, kinds)
        asked = {f"{number}{place:02d}": each for place, each in enumerate(chosen)}
        for question_id, question in asked.items():
            entries[question_id] = _gqa_entry(question_id, question, image_id, asked)
    return entries


def some_questions(scene: Scene, dice: Dice, count: int, kinds: Sequence[str] = KINDS) -> list[Question]:
    """At most ``count`` different questions about ``scene``, of any of ``kinds``."""
    return dice.sample([each for each in questions(scene, dice) if each.detailed in kinds], count)


def _gqa_entry(question_id: str, question: Question, image_id: str, asked: Mapping[str, Question]) -> dict[str, Any]:
    entailed = [question_id]
    if question.structural in ("query", "choose"):
        entailed += [other for other, each in asked.items() if other != question_id and each.about == question.about]
    return {
        "semantic": [{"operation": op, "dependencies": list(on), "argument": arg} for op, on, arg in question.program],
        "entailed": entailed,
        "equivalent": [question_id],
        "question": question.text,
        "imageId": image_id,
        "isBalanced": True,
        "groups": {"global": question.group, "local": f"{question.structural}-{question.about.replace(' ', '_')}"},
        "answer": question.answer,
        "semanticStr": "->".join(
            f"{op}: {arg}{''.join(f' [{step}]' for step in on)}" for op, on, arg in question.program
        ),
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": question.detailed, "semantic": question.semantic, "structural": question.structural},
        "fullAnswer": question.full_answer,
    }
