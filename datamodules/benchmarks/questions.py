"""What all question benchmarks share: the form of a question, and checks of their files."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from datamodules.images import ImageSource

BENCHMARK = "benchmark file"
"""What these files are called in errors."""
OFFICIAL_ELSE = "If this is not the official file, set its data to 'scenes'"
Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question on one picture, as the benchmark's file has it."""

    benchmark: str
    split: str
    sample_id: str
    """``<split>/<question id>``: unique in the benchmark and the same in every process."""
    image: ImageSource
    question: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What scoring needs beyond the answer."""


def require_unique(ids: Sequence[Hashable], what: str, where: str | Path) -> None:
    """Raise ValueError if ``where`` gives one of ``ids`` several times; ``what`` they are ids of."""
    if len(set(ids)) != len(ids):
        [(repeated, times)] = Counter(ids).most_common(1)
        raise ValueError(f"{where} holds {what} {repeated} {times} times; each must be there once")


def require_columns(found: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    """Raise ValueError unless a table has each of the columns ``wanted`` once."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{path} is missing the columns {', '.join(missing)}; expected {', '.join(wanted)}")
    require_unique([name for name in found if name in wanted], "the column", path)


def require_images(images: Iterable[ImageSource], source: Path) -> None:
    """Raise FileNotFoundError unless all picture files that ``source`` names exist."""
    wanted = list(dict.fromkeys(image for image in images if isinstance(image, Path)))
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} images that {source} names do not exist, the first is {missing[0]}; "
            "check the images folder"
        )
