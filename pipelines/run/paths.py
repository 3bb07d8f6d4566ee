"""Where relative paths in configurations count from: never the folder that a verb happens to be started in."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from modules.run_files import CHECKPOINTS, CONFIG, EXPORT, PROVENANCE
from pipelines.run.texts import literally

_OF_MEASURES = (
    "all_questions", "annotations", "cache", "captions", "choices", "folder", "images", "questions", "reference",
    "source", "submission_questions", "weights",
)  # fmt: skip
PATHS = (
    "model.tokenizer",
    "model.vq",
    "model.vision.*.weights",
    "pretrained",
    "pretrained_adapters.*",
    "data.mmu",
    "data.t2i",
    "data.val.*",
    "data.cache",
    "scenes.folder",
    "hardware.kernel_cache",
    *(f"evaluation.*.{name}" for name in _OF_MEASURES),
)
"""Keys of files to read. Run folders (run.dir, init_from) are in the current folder, like the RUN of every verb."""


def place_of(file: Path) -> Path:
    """The absolute path of a YAML file. A link to the file is followed; links among its folders are not, but for
    ``..``, which leads out of the folder that a link stands for."""
    if file.is_symlink():
        return file.resolve()
    place = Path("/")
    for part in file.absolute().parts[1:]:
        place = place.resolve().parent if part == ".." else place / part
    return place


def in_file(values: Any, file: Path) -> Any:
    """``values`` of the YAML file ``file`` with absolute paths.

    A relative path counts from the file's own folder, and in a file below a folder ``configs`` from the folder that
    holds ``configs``.
    """
    if _is_written_here(file):
        return _placed(values, lambda path: _of_earlier_version(file, path))
    projects = [folder.parent for folder in file.parents if folder.name == "configs"]
    return _placed(values, lambda _: projects[0] if projects else file.parent)


def in_words(values: Any) -> Any:
    """``values`` of the command line with absolute paths; there, relative ones count from the current folder."""
    return _placed(values, lambda _: Path.cwd())


def from_here(path: str | Path) -> str:
    """The path as people say it: from the current folder, if it lies below."""
    return str(path).removeprefix(f"{Path.cwd()}/")


def own_folder(file: Path) -> Path | None:
    """The run folder or export whose configuration ``file`` is; None for any other file."""
    return place_of(file).parent if _is_written_here(place_of(file)) else None


def _is_written_here(file: Path) -> bool:
    marks = (PROVENANCE, EXPORT, f"{CHECKPOINTS}/step-*")
    return file.name == CONFIG and any(any(file.parent.glob(mark)) for mark in marks)


def _of_earlier_version(file: Path, path: str) -> Path:
    """The folder of a relative path in a run or an export, which earlier versions wrote as they were given.

    They did not write down where the run was started: at best in the project around it, or where this process is now.
    """
    projects = [folder for folder in file.parents if (folder / "configs").is_dir()]
    places = (file.parent, *projects[:1], Path.cwd())
    return next((place for place in places if (place / path).exists()), file.parent)


def _placed(values: Any, place: Callable[[str], Path], key: str = "") -> Any:
    if isinstance(values, dict):
        return {name: _placed(value, place, f"{key}.{name}" if key else str(name)) for name, value in values.items()}
    if not isinstance(values, str) or not _is_relative(values) or not any(fnmatchcase(key, each) for each in PATHS):
        return values
    return f"{literally(str(place(values)))}/{values}"


def _is_relative(path: str) -> bool:
    return bool(path) and not path.startswith(("/", "~", "${")) and "://" not in path
