"""Turns YAML files and ``key=value`` words into frozen dataclasses; errors name key, value, rule and way out."""

import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError, safe_load

from modules.redaction import find_secrets, is_secret_key
from pipelines.run.keys import is_key, near_keys, unknown_keys
from pipelines.run.paths import in_file, place_of
from pipelines.run.texts import as_typed, at_home, kind_of, unquoted
from pipelines.run.yaml_shape import shape_problem

Config = TypeVar("Config")
PROJECT = Path(__file__).parents[2]
"""The folder of this project."""
RENAMED_VALUES = {"hardware.recompute": {"true": "block", "false": "none"}}
"""By key: a value as it was written once, and as it is now."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which key, why, and what to do."""


def parse_overrides(cls: type[Config], overrides: Sequence[str]) -> Config:
    """An instance of the dataclass ``cls`` from ``["key=value", ...]``, checked by its ``problems()`` if it has one.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value or a broken rule.
    """
    return build(cls, dotlist(overrides, cls), source="the command line")


def dotlist(overrides: Sequence[str], cls: type) -> DictConfig:
    """``["a.b=1", ...]`` as a nested configuration of the dataclass ``cls``.

    Values of text keys are taken as typed; other values are YAML.

    Raises:
        ConfigError: a word is not of the form key=value, its value is not valid YAML, or it contradicts an earlier one.
    """
    values = OmegaConf.create({})
    for word in overrides:
        _require_form(word)
        try:
            _set(values, word, cls)
        except (OmegaConfBaseException, YAMLError) as error:
            if is_secret_key(key := word.split("=")[0]):
                raise _secrets_refused("the command line", [(key, "is named like a secret")]) from None
            raise ConfigError(
                f"override '{word}' cannot be read: {error}. Quote values with special characters."
            ) from error
    return values


def _require_form(word: str) -> None:
    if "=" not in word.removeprefix("="):
        raise ConfigError(f"override '{word}' is not of the form key=value, for example trainer.max_steps=100")


def refuse_unknown_words(words: Sequence[str]) -> None:
    """Refuse ``key=value`` words whose keys no run's configuration has; values are checked later, by their types.

    Raises:
        ConfigError: there are some, or a word has another form or holds a secret.
    """
    for word in words:
        _require_form(word)
    refuse_secret_words(words, "the command line")
    _refuse_keys([problem for word in words for problem in _word_problems(word)], "the command line")


def _word_problems(word: str) -> list[str]:
    key, _, value = word.partition("=")
    if not is_key(key):
        near = " or ".join(shlex.quote(f"{name}={value}") for name in near_keys(key))
        advice = f"did you mean {near}?" if near else "`python -m pipelines.keys` lists all of them"
        return [f"{word}: there is no key {key}; {advice}"]
    inside: Any = None
    if value.lstrip().startswith("{"):
        with suppress(YAMLError):  # told when the value is read
            inside = safe_load(value)
    return list(unknown_keys(inside, f"{key}.")) if isinstance(inside, dict) else []


def read_known(path: Path) -> DictConfig:
    """`read_yaml` of a run's configuration; its keys are checked.

    Raises:
        ConfigError: see `read_yaml`; or it holds a secret, or a key that no configuration has.
    """
    values = read_yaml(path)
    plain: Any = OmegaConf.to_container(values)
    _refuse_secrets(plain, str(path))
    _refuse_keys(list(unknown_keys(plain)), str(path))
    return values


def _refuse_keys(problems: Sequence[str], source: str) -> None:
    """A single problem is told on the line of its source."""
    if len(problems) == 1:
        raise ConfigError(f"{source}: {problems[0]}")
    refuse(problems, source)


def refuse_secret_words(words: Sequence[str], source: str) -> None:
    """Refuse words that a training would refuse, before they are written or shown; those without ``=`` are no values.

    Raises:
        ConfigError: the value of a ``key=value`` word is a secret or holds one.
    """
    pairs = [word.split("=", 1) for word in words if "=" in word]
    if found := [secret for key, value in pairs for secret in find_secrets({key: value})]:
        raise _secrets_refused(source, found)


def _set(values: DictConfig, word: str, cls: type) -> None:
    key, _, typed = word.partition("=")
    try:
        value = as_typed(kind_of(cls, key), typed)
    except LookupError:
        values.merge_with_dotlist([word])
    else:
        OmegaConf.update(values, key, value)


def read_yaml(path: Path, _seen: tuple[Path, ...] = ()) -> DictConfig:
    """Read a YAML file, merged over the files in its ``include`` list; later ones win.

    What is included is looked for beside the file, then in the project's configs/.

    Relative paths to files become absolute; `pipelines.run.paths` has the rule.

    Raises:
        ConfigError: a file is missing, is not a YAML mapping, or includes itself.
    """
    path = place_of(path)
    if path.resolve() in _seen:
        raise ConfigError(f"{path} includes itself through {_seen[-1]}; break the circle of include entries")
    if not path.is_file():
        by = f" (included by {_seen[-1]}, and not in {PROJECT / 'configs'} either)" if _seen else ""
        raise ConfigError(
            f"configuration file {path} does not exist{by}; configs/ holds the ones that come with the project"
        )
    try:
        if problem := shape_problem(path):
            raise ConfigError(f"{path} {problem}")
        own = OmegaConf.load(path)
    except MarkedYAMLError as error:  # its own text shows lines of the file, which may not be meant for this one
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path} is not valid YAML: line {line}: {error.problem}") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except OSError as error:  # OmegaConf also raises this for a file that holds a single bare value
        raise ConfigError(f"{path} cannot be read or holds no keys and values") from error
    if not isinstance(own, DictConfig):
        raise ConfigError(f"{path} must hold keys and values at its top level")
    merged = OmegaConf.create({})
    for name in _includes(own.pop("include", []), path):
        merged = merge(merged, read_yaml(_included(name, path), (*_seen, path.resolve())), source=str(path))
    return merge(merged, OmegaConf.create(in_file(OmegaConf.to_container(own), path)), source=str(path))


def _includes(value: Any, path: Path) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | ListConfig) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: include={value} must be a file name or a list of them, such as [model/tiny.yaml]")
    return list(names)


def _included(name: str, path: Path) -> Path:
    """The file that ``path`` includes: relative to itself if it is there, else to the project's configs/."""
    beside, shared = path.parent / expanduser(name), PROJECT / "configs" / expanduser(name)
    return shared if not beside.is_file() and shared.is_file() else beside


def merge(below: DictConfig, above: DictConfig, source: str) -> DictConfig:
    """``below`` overridden by ``above``; ``source`` names the latter in errors.

    Raises:
        ConfigError: one has a list where the other has keys.
    """
    try:
        merged = OmegaConf.merge(below, above)
    except TypeError as error:
        raise ConfigError(f"{source}: {_section(below, above)}: a list cannot replace keys") from error
    assert isinstance(merged, DictConfig)
    return merged


def build(cls: type[Config], values: DictConfig, source: str) -> Config:
    """Check ``values`` and turn them into an instance of the dataclass ``cls``; ``source`` names them in errors.

    Raises:
        ConfigError: see `parse_overrides`; or a secret is among the values.
    """
    values = _renewed(values)
    plain: Any = OmegaConf.to_container(values)
    _refuse_secrets(plain, source)
    refuse(list(unquoted(cls, plain)), source)
    try:
        config: Any = OmegaConf.to_object(merge(OmegaConf.structured(cls), values, source))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {_explain(error, values, cls)}") from error
    _refuse_secrets(asdict(config), source)  # an interpolation may have brought one
    try:
        result: Config = at_home(config)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    refuse(_not_finite(result) + (result.problems() if hasattr(result, "problems") else []), source)
    return result


def _renewed(values: DictConfig) -> DictConfig:
    """Values as they are written now; configurations of old runs stay runnable."""
    renewed = values.copy()
    for key, now in RENAMED_VALUES.items():
        with suppress(OmegaConfBaseException, AttributeError):  # it may be an interpolation; told later if it is wrong
            if (old := str(OmegaConf.select(values, key)).lower()) in now:
                OmegaConf.update(renewed, key, now[old])
    return renewed


def refuse(problems: Sequence[str], source: str) -> None:
    """Refuse the values of ``source`` if there are ``problems``, one line each.

    Raises:
        ConfigError: there are some.
    """
    if problems:
        raise ConfigError(f"{source}:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _refuse_secrets(values: Any, source: str) -> None:
    if found := list(find_secrets(values)):
        raise _secrets_refused(source, found)


def _secrets_refused(source: str, found: Sequence[tuple[str, str]]) -> ConfigError:
    return ConfigError(
        f"{source}: {'; '.join(f'{key} {why}' for key, why in found)}. A configuration is written to the run folder, "
        "to checkpoints and to Weights & Biases: leave secrets out of it. Set them in the environment "
        "(WANDB_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, ...) or in the file that each service has for them"
    )


def _not_finite(value: Any, key: str = "") -> list[str]:
    """Problems with non-finite numbers, which other rules cannot check: a comparison with NaN is never true."""
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{key}={value} must be a finite number"]
    if is_dataclass(value):
        pairs = [(field.name, getattr(value, field.name)) for field in fields(value)]
        return [found for name, each in pairs for found in _not_finite(each, f"{key}.{name}" if key else name)]
    if isinstance(value, tuple | list):
        return [found for number, each in enumerate(value) for found in _not_finite(each, f"{key}[{number}]")]
    return []


def _explain(error: OmegaConfBaseException, values: DictConfig, cls: type) -> str:
    key = getattr(error, "full_key", None) or _section(OmegaConf.structured(cls), values)
    reason = f"{str(error).splitlines()[0]:.300}"
    if not key:
        return reason
    if "missing mandatory value" in reason.lower():
        return f"{key} has no value and needs one; set it in the YAML file or add {key}=... to the command"
    value = OmegaConf.select(values, key, throw_on_resolution_failure=False)
    if "is not a TupleConfig" in reason:
        wanted = shlex.quote(f"{key}=[{value!s:.200}]")  # shells read brackets as patterns
        return f"{key} (given: {value!r:.200}) must be a list: {wanted}"
    shown = "" if value is None else f" (given: {value!r:.200})"
    return f"{key}{shown}: {reason}"


def _section(below: DictConfig, above: DictConfig) -> str | None:
    """The top-level key of ``above`` that does not merge, for errors of OmegaConf that name no key."""
    for key in map(str, above):
        try:
            OmegaConf.merge(below, OmegaConf.masked_copy(above, key))
        except (OmegaConfBaseException, TypeError):
            return key
    return None
