"""Questions about a scene whose answers are known from how it was drawn."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from datamodules.scenes.dice import Dice
from datamodules.scenes.draw import COLORS, DIAMETERS, SHAPES, Scene
from datamodules.scenes.language import (
    NAMES,
    NUMBERS,
    RELATIONS,
    article,
    presence_text,
    present_names,
    true_relations,
)

ANSWERS = ("yes", "no", *COLORS, *SHAPES, *DIAMETERS, "left", "right", "above", "below", "1", "2", "3")
"""All possible answers."""

ALWAYS_KINDS = ("exist", "sizeVerify", "sizeChoose", "count")
"""Kinds of questions that every scene allows."""
KINDS = (*ALWAYS_KINDS, "existAnd", "colorVerify", "colorQuery", "shapeVerify", "shapeQuery", "relVerify", "relChoose")
"""All kinds of questions, as in GQA's ``types.detailed``."""

Step = tuple[str, tuple[int, ...], str]
"""One step of a GQA program: operation, numbers of the steps it depends on, argument."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its answer (one lower-case word) and what GQA records about it."""

    text: str
    answer: str
    full_answer: str
    about: str
    """The fact asked for. The answer to a query or choice about it entails those to all other questions about it."""
    structural: Literal["verify", "query", "choose", "logical"]
    semantic: Literal["obj", "attr", "cat", "rel", "global"]
    detailed: str
    program: tuple[Step, ...]
    group: str | None = None
    """Family of answers, for GQA's distribution measure; queries only."""


def questions(scene: Scene, dice: Dice) -> list[Question]:
    """Every form of question that ``scene`` allows, about randomly drawn objects.

    For yes-no questions both answers are equally likely, for every kind of name in the question.
    """
    return [
        *_presence(scene, dice),
        *_both(scene, dice),
        *_color(scene, dice),
        *_shape(scene, dice),
        *_size(scene, dice),
        *_relation(scene, dice),
        _count(scene),
    ]


def _yes_no(holds: bool) -> tuple[str, str]:
    """The answer, and the start of the full answer."""
    return ("yes", "Yes, ") if holds else ("no", "No, ")


def _selected(name: str, after: int = 0) -> list[Step]:
    """Steps that select ``name`` in the scene; ``after`` steps come before them."""
    first, _, last = name.rpartition(" ")
    steps: list[Step] = [("select", (), last)]
    if first:
        steps.append(("filter color", (after,), first))
    return steps


def _presence(scene: Scene, dice: Dice) -> list[Question]:
    found = []
    present = set(present_names(scene))
    for kind in NAMES.values():
        holds = dice.chance(0.5)
        name = dice.pick([name for name in kind if (name in present) == holds])
        answer, start = _yes_no(holds)
        steps = _selected(name)
        found.append(
            Question(
                text=presence_text(name),
                answer=answer,
                full_answer=f"{start}there is {article(name) if holds else f'no {name}'} in the image.",
                about=f"presence of {article(name)}",
                structural="verify",
                semantic="obj",
                detailed="exist",
                program=(*steps, ("exist", (len(steps) - 1,), "?")),
            )
        )
    return found


def _both(scene: Scene, dice: Dice) -> list[Question]:
    if len(scene.objects) < 2:
        return []
    holds = dice.chance(0.5)
    one, other = (each.name for each in dice.sample(scene.objects, 2))
    if not holds:
        present = present_names(scene)
        other = dice.pick([name for name in NAMES["both"] if name not in present])
        one, other = dice.shuffled([one, other])
    answer, start = _yes_no(holds)
    program = (
        *_selected(one),
        ("exist", (1,), "?"),
        *_selected(other, after=3),
        ("exist", (4,), "?"),
        ("and", (2, 5), ""),
    )
    return [
        Question(
            text=f"Are there both {article(one)} and {article(other)} in the image?",
            answer=answer,
            full_answer=f"{start}there are {'' if holds else 'not '}both {article(one)} and {article(other)}.",
            about=f"presence of {article(one)} and {article(other)}",
            structural="logical",
            semantic="obj",
            detailed="existAnd",
            program=program,
        )
    ]


def _attribute(
    noun: str, attribute: str, value: str, other: str, dice: Dice, *, verify: str, query: str = "", choose: str = ""
) -> list[Question]:
    """The questions about one attribute of ``noun``; an empty form is left out.

    ``{value}`` in ``verify`` becomes the true ``value`` or the false ``other``.
    """
    steps = _selected(noun)
    last = (len(steps) - 1,)
    semantic: Literal["cat", "attr"] = "cat" if attribute == "shape" else "attr"
    ask = partial(Question, about=f"{attribute} of the {noun}", semantic=semantic)
    holds = dice.chance(0.5)
    asked = value if holds else other
    answer, start = _yes_no(holds)
    statement = f"the {noun} is {article(value) if attribute == 'shape' else value}."
    found = [
        ask(
            text=verify.format(value=article(asked) if attribute == "shape" else asked),
            answer=answer,
            full_answer=start + statement,
            structural="verify",
            detailed=f"{attribute}Verify",
            program=(*steps, (f"verify {attribute}", last, asked)),
        )
    ]
    if query:
        found.append(
            ask(
                text=query,
                answer=value,
                full_answer=statement.capitalize(),
                structural="query",
                detailed=f"{attribute}Query",
                program=(*steps, ("query", last, attribute)),
                group=attribute,
            )
        )
    if choose:
        found.append(
            ask(
                text=choose,
                answer=value,
                full_answer=statement.capitalize(),
                structural="choose",
                detailed=f"{attribute}Choose",
                program=(*steps, (f"choose {attribute}", last, "|".join(sorted((value, other))))),
            )
        )
    return found


def _color(scene: Scene, dice: Dice) -> list[Question]:
    """Questions about the colour of a shape that occurs once."""
    shapes = [each.shape for each in scene.objects]
    known = [each for each in scene.objects if shapes.count(each.shape) == 1]
    if not known:
        return []
    each = dice.pick(known)
    other = dice.pick([color for color in COLORS if color != each.color])
    return _attribute(
        each.shape,
        "color",
        each.color,
        other,
        dice,
        query=f"What color is the {each.shape}?",
        verify=f"Is the {each.shape} {{value}}?",
    )


def _shape(scene: Scene, dice: Dice) -> list[Question]:
    """Questions about the shape of a colour that occurs once."""
    colors = [each.color for each in scene.objects]
    known = [each for each in scene.objects if colors.count(each.color) == 1]
    if not known:
        return []
    each = dice.pick(known)
    other = dice.pick([shape for shape in SHAPES if shape != each.shape])
    noun = f"{each.color} object"
    return _attribute(
        noun,
        "shape",
        each.shape,
        other,
        dice,
        query=f"What shape is the {noun}?",
        verify=f"Is the {noun} {{value}}?",
    )


def _size(scene: Scene, dice: Dice) -> list[Question]:
    each = dice.pick(scene.objects)
    other = next(size for size in DIAMETERS if size != each.size)
    return _attribute(
        each.name,
        "size",
        each.size,
        other,
        dice,
        verify=f"Is the {each.name} {{value}}?",
        choose=f"Is the {each.name} {' or '.join(DIAMETERS)}?",
    )


def _relation(scene: Scene, dice: Dice) -> list[Question]:
    if len(scene.objects) < 2:
        return []
    a, b = dice.sample(scene.objects, 2)
    true = true_relations(a, b)
    holds = dice.chance(0.5)
    asked = dice.pick([name for name in RELATIONS if (name in true) == holds])
    answer, start = _yes_no(holds)
    pair = (*_selected(a.name), *_selected(b.name, after=2))
    chosen = dice.pick(true)
    options, preposition = ("left or right", " of") if chosen in ("left of", "right of") else ("above or below", "")
    about = f"{options} of the {a.name} and the {b.name}"
    return [
        Question(
            text=f"Is the {a.name} {asked} the {b.name}?",
            answer=answer,
            full_answer=f"{start}the {a.name} is {'' if holds else 'not '}{asked} the {b.name}.",
            about=about if asked.split()[0] in options.split() else f"{asked} of the {a.name} and the {b.name}",
            structural="verify",
            semantic="rel",
            detailed="relVerify",
            program=(*pair, ("verify rel", (1, 3), asked)),
        ),
        Question(
            text=f"Is the {a.name} {options}{preposition} the {b.name}?",
            answer=chosen.split()[0],
            full_answer=f"The {a.name} is {chosen} the {b.name}.",
            about=about,
            structural="choose",
            semantic="rel",
            detailed="relChoose",
            program=(*pair, ("choose rel", (1, 3), options.replace(" or ", "|"))),
        ),
    ]


def _count(scene: Scene) -> Question:
    count = len(scene.objects)
    return Question(
        text="How many objects are there?",
        answer=str(count),
        full_answer=f"There {'is' if count == 1 else 'are'} {NUMBERS[count]}.",
        about="number of objects",
        structural="query",
        semantic="global",
        detailed="count",
        program=(("select", (), "object"), ("count", (0,), "?")),
        group="number",
    )
