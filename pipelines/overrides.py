"""YAML files and ``key=value`` words into frozen dataclasses, with errors that name key, value, rule and way out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Config = TypeVar("Config")


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which key, why, and what to do."""


def parse_overrides(cls: type[Config], overrides: Sequence[str]) -> Config:
    """An instance of the dataclass ``cls`` from ``["key=value", ...]``, checked by its ``problems()`` if it has one.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value or a broken rule.
    """
    return build(cls, dotlist(overrides), source="the command line")


def dotlist(overrides: Sequence[str]) -> DictConfig:
    """``["a.b=1", ...]`` as a nested configuration.

    Raises:
        ConfigError: a word is not of the form key=value, or its value is not valid YAML.
    """
    for word in overrides:
        if "=" not in word.removeprefix("="):
            raise ConfigError(f"override '{word}' is not of the form key=value, for example trainer.max_steps=100")
        try:
            OmegaConf.from_dotlist([word])
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"override '{word}' cannot be read: {error}. Quote values with special signs.") from error
    return OmegaConf.from_dotlist(list(overrides))


def read_yaml(path: Path, _seen: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file merged over the files its ``include`` list names (relative to it; later ones win).

    Raises:
        ConfigError: a file is missing, is no YAML mapping, or includes itself.
    """
    path = path.resolve()
    if path in _seen:
        raise ConfigError(f"{path} includes itself by way of {_seen[-1]}; break the circle of include entries")
    if not path.is_file():
        by = f" (included by {_seen[-1]})" if _seen else ""
        raise ConfigError(
            f"configuration file {path} does not exist{by}; configs/ holds the ones that come with the project"
        )
    try:
        own = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(own, DictConfig):
        raise ConfigError(f"{path} must hold keys and values at its top level")
    includes = own.pop("include", [])
    if isinstance(includes, str):
        includes = [includes]
    merged = OmegaConf.create({})
    for name in includes:
        merged = _merge(merged, read_yaml(path.parent / name, (*_seen, path)))
    return _merge(merged, own)


def _merge(below: DictConfig, above: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(below, above)
    assert isinstance(merged, DictConfig)
    return merged


def build(cls: type[Config], values: DictConfig, source: str) -> Config:
    """``values`` checked against the dataclass ``cls`` and turned into it; ``source`` names them in errors.

    Raises:
        ConfigError: as `parse_overrides`.
    """
    try:
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {_explain(error, values)}") from error
    problems = config.problems() if hasattr(config, "problems") else []
    if problems:
        raise ConfigError(f"{source}:\n" + "\n".join(f"  - {problem}" for problem in problems))
    result: Config = config
    return result


def _explain(error: OmegaConfBaseException, values: DictConfig) -> str:
    key = getattr(error, "full_key", None)
    reason = str(error).splitlines()[0]
    if not key:
        return reason
    if "missing mandatory value" in reason.lower():
        return f"{key} has no value and needs one; set it in the YAML file or add {key}=... to the command"
    value = OmegaConf.select(values, key, throw_on_resolution_failure=False)
    shown = "" if value is None else f" (given: {value!r})"
    return f"{key}{shown}: {reason}"
