"""Which parameters a stage trains (paper, Fig. 4), and a report of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

PARTS: tuple[tuple[str, str], ...] = (
    ("MMU adapters", "backbone.*.lora_?.mmu.*"),
    ("T2I adapters", "backbone.*.lora_?.t2i.*"),
    ("Mamba-2 blocks", "backbone.layers.*"),
    ("final norm", "backbone.norm.*"),
    ("vision encoder", "vision.*"),
    ("projector", "projector.*"),
    ("text embedding", "text_embedding.*"),
    ("caption projection", "caption_projection.*"),
    ("image table", "image_table.*"),
    ("image MLP", "image_mlp.*"),
    ("MMU positions", "mmu_positions"),
    ("T2I positions", "t2i_positions"),
)
"""Names of the model's parts. A parameter belongs to the first pattern it matches."""


@dataclass(frozen=True)
class TrainableReport:
    """What is trained: parameter names, and for each part (name, trained count, total count, by ``also_train``)."""

    names: tuple[str, ...]
    parts: tuple[tuple[str, int, int, bool], ...]

    def lines(self) -> list[str]:
        """The report as text, one line per part."""
        lines = [f"{'part':<20}{'trained':>14}{'frozen':>14}"]
        for part, trained, total, extra in self.parts:
            note = "  beyond the paper's stage: stage.also_train" if extra else ""
            lines.append(f"{part:<20}{trained:>14,}{total - trained:>14,}{note}")
        trained, total = (sum(column) for column in zip(*[(part[1], part[2]) for part in self.parts], strict=True))
        lines.append(f"{'all':<20}{trained:>14,}{total - trained:>14,}")
        return lines


def set_trainable(
    model: nn.Module, patterns: Sequence[str], *, also_train: Sequence[str] = (), freeze: Sequence[str] = ()
) -> TrainableReport:
    """Train exactly the parameters that match ``patterns`` or ``also_train`` and not ``freeze``, and freeze the rest.

    Raises:
        ValueError: a pattern of ``also_train`` or ``freeze`` matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for key, given in (("also_train", also_train), ("freeze", freeze)):
        for pattern in given:
            if not any(fnmatchcase(name, pattern) for name in names):
                known = ", ".join(sorted({_part(name)[1] for name in names}))
                raise ValueError(f"stage.{key} pattern '{pattern}' matches no parameter; parts of this model: {known}")
    rows: dict[str, list[int]] = {}
    trained = []
    for name, parameter in model.named_parameters():
        own = _fits(name, patterns)
        on = (own or _fits(name, also_train)) and not _fits(name, freeze) and not name.startswith("vision.")
        parameter.requires_grad_(on)
        row = rows.setdefault(part_of(name), [0, 0, 0])
        row[0] += on * parameter.numel()
        row[1] += parameter.numel()
        row[2] |= on and not own
        if on:
            trained.append(name)
    if not trained:
        raise ValueError("nothing is left to train: stage.freeze covers everything the stage trains; narrow it")
    order = [part for part, _ in PARTS if part in rows]
    return TrainableReport(
        tuple(trained), tuple((part, rows[part][0], rows[part][1], bool(rows[part][2])) for part in order)
    )


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def part_of(name: str) -> str:
    """The part that the parameter ``name`` belongs to."""
    return _part(name)[0]


def _part(name: str) -> tuple[str, str]:
    for part, pattern in PARTS:
        if fnmatchcase(name, pattern):
            return part, pattern
    raise AssertionError(f"parameter {name} belongs to no part; add it to PARTS")
