"""How many scenes to draw, and what to ask about them."""

from dataclasses import dataclass

from datamodules.scenes.draw import MAX_OBJECTS
from datamodules.scenes.questions import ALWAYS_KINDS, KINDS

MAX_TURNS = 4


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """The embedded data set; the defaults are sized for a demo."""

    images: int = 3000
    """Training images."""
    val_images: int = 256
    """Validation images."""
    seed: int = 0
    """Seed of all that is drawn."""
    min_objects: int = 1
    """Fewest objects of a scene."""
    max_objects: int = MAX_OBJECTS
    """Most objects of a scene."""
    conversations: int = 2
    """Question-and-answer samples per training image."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of questions asked, in training and in the GQA-style file."""
    turns: int = 3
    """Questions per sample."""
    caption_share: float = 0.2
    """Share of the training images with an additional sample that asks for a description."""
    gqa_questions: int = 4
    """GQA-style questions per validation image."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out."""
        found = [
            f"{key}={getattr(self, key)} must be at least 1"
            for key in ("images", "val_images", "conversations", "gqa_questions")
            if getattr(self, key) < 1
        ]
        if not 1 <= self.min_objects <= self.max_objects <= MAX_OBJECTS:
            found.append(
                f"min_objects={self.min_objects} and max_objects={self.max_objects} must satisfy "
                f"1 <= min_objects <= max_objects <= {MAX_OBJECTS}"
            )
        if not 1 <= self.turns <= MAX_TURNS:
            found.append(
                f"turns={self.turns} must lie in [1, {MAX_TURNS}]: training would cut most longer conversations"
            )
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            found.append(f"kinds has unknown entries {', '.join(unknown)}; known are {', '.join(KINDS)}")
        if not set(ALWAYS_KINDS) & set(self.kinds):
            found.append(
                f"kinds must include one that every scene allows, or a scene may have no "
                f"question: {', '.join(ALWAYS_KINDS)}"
            )
        if not 0 <= self.caption_share <= 1:
            found.append(f"caption_share={self.caption_share} must lie in [0, 1]")
        return found
