"""What people name on a command line, understood and checked before anything heavy is loaded."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from modules.run_files import CONFIG, EXPORT, MANIFEST
from pipelines.run.overrides import PROJECT, ConfigError, read_known, refuse_unknown_words
from pipelines.run.paths import from_here, own_folder


def training_config(named: Path | None) -> Path:
    """The configuration file that ``named`` means for training: the file itself, or that of a run folder.

    Raises:
        ConfigError: it is neither, or nothing is named.
    """
    if named is None:
        raise ConfigError(f"name what to train: {_choices(PROJECT / 'configs')}")
    if (named / MANIFEST).is_file() and (run_of(named) / CONFIG).is_file():
        raise ConfigError(f"{named} is a checkpoint; name its run folder, {run_of(named)}, to go on from the latest")
    if (named / EXPORT).is_file():
        raise ConfigError(
            f"{named} holds exported weights, not a run; to start from them, name a configuration file and add "
            f"pretrained={named}"
        )
    if named.is_dir() and own_folder(named / CONFIG) is None:
        inside = named if any(named.glob("*.yaml")) else PROJECT / "configs"
        raise ConfigError(f"{named} is a folder, but not a run folder; name {_choices(inside)}")
    if not named.exists():
        raise ConfigError(_missing(named))
    return named / CONFIG if named.is_dir() else named


def trained_place(named: Path, overrides: Sequence[str] = ()) -> Path:
    """What ``named`` means to those who use trained weights: config.yaml of a run or an export means its folder.

    Not if the words say where the weights are: then it is a configuration like any other.
    """
    folder = own_folder(named) if named.is_file() else None
    if folder is None or any(word.startswith("pretrained=") for word in overrides):
        return named
    return named.parent


def trained_file(named: Path) -> Path:
    """The configuration file of what `trained_place` returned.

    Raises:
        ConfigError: it is neither a run folder, a checkpoint, an export nor a file.
    """
    if named.is_file():
        return named
    if not (run_of(named) / CONFIG).is_file():
        what = f"is not a run folder: it has no {CONFIG}" if named.exists() else "does not exist"
        raise ConfigError(
            f"{named} {what}. Name one that pipelines.train made, one of its checkpoints, a folder of "
            "pipelines.export, or a configuration file with pretrained=..."
        )
    return run_of(named) / CONFIG


def run_of(named: Path) -> Path:
    """The folder with the configuration of ``named``: the run folder of a checkpoint, otherwise ``named`` itself."""
    return named.resolve().parents[1] if (named / MANIFEST).is_file() else named


def check_training(named: Path | None, overrides: Sequence[str]) -> Path:
    """`training_config`, with the file's YAML and the keys of file and words checked.

    Raises:
        ConfigError: something is wrong that can be known without torch.
    """
    file = training_config(named)
    read_known(file)
    refuse_unknown_words(overrides)
    return file


def check_trained(named: Path, overrides: Sequence[str]) -> None:
    """The same for what holds trained weights.

    Raises:
        ConfigError: something is wrong that can be known without torch.
    """
    read_known(trained_file(trained_place(named, overrides)))
    refuse_unknown_words(overrides)


def _missing(named: Path) -> str:
    if "=" in str(named):
        return f"{named} is an override; before it, name {_choices(PROJECT / 'configs')}"
    files = [*named.parent.glob("*.yaml"), *(PROJECT / "configs").glob("*.yaml")]
    near = get_close_matches(named.stem, [file.stem for file in files], 1, 0.6)
    found = [from_here(file) for file in files if file.stem in near]
    hint = f"did you mean {found[0]}?" if found else "configs/ holds the ones that come with the project"
    return f"configuration file {named} does not exist; {hint}"


def _choices(folder: Path) -> str:
    """What may be trained: the configuration files of ``folder``, or a run."""
    names = ", ".join(sorted(file.name for file in folder.glob("*.yaml")))
    return f"a configuration file of {from_here(folder)}/ ({names}), or a run folder to go on with"
