"""YAML files and key=value words: every message says what is wrong and how to mend it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

from pipelines.benchmark.train import TrainBenchmarkConfig
from pipelines.run.overrides import ConfigError, build, dotlist, parse_overrides, read_yaml


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    share: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    kind: Literal["small", "large"] = "small"
    on: bool = False
    paths: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    group: str | None = "a"

    def problems(self) -> list[str]:
        found = [f"inner.size={self.inner.size} must be at least 1"] if self.inner.size < 1 else []
        return found + (["name is forbidden"] if self.name == "forbidden" else [])


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_overrides(Outer, overrides)
    return str(error.value)


def test_words_become_a_frozen_dataclass_of_plain_values() -> None:
    words = [
        "name=x",
        "kind=large",
        "on=true",
        "paths=[a, b]",
        "inner.betas=[0.1, 0.2]",
        "extra={size: 7}",
        "group=null",
    ]
    assert parse_overrides(Outer, words) == Outer(
        name="x",
        kind="large",
        on=True,
        paths=("a", "b"),
        inner=Inner(betas=(0.1, 0.2)),
        extra=Inner(size=7),
        group=None,
    )


def test_defaults_stand_and_later_words_win() -> None:
    assert parse_overrides(Outer, ["name=x"]) == Outer(name="x")
    assert parse_overrides(Outer, ["name=x", "inner.size=1", "name=y=z", "inner.size=2"]) == Outer(
        name="y=z", inner=Inner(size=2)
    )
    assert parse_overrides(Outer, ["name=x", "extra={size: 7}", "extra=null"]).extra is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["name=x", "inner.sise=4"],
            "the command line: inner.sise (given: 4): Key 'sise' not in 'Inner'. Did you mean: 'size'?",
        ),
        (["name=x", "outer=4"], "the command line: outer (given: 4): Key 'outer' not in 'Outer'"),
        (
            ["name=x", "inner.size=many"],
            "inner.size (given: 'many'): Value 'many' of type 'str' could not be converted to Integer",
        ),
        (["name=x", "inner.size=1.5"], "inner.size (given: 1.5)"),
        (["name=x", "inner.share=much"], "inner.share (given: 'much'): Value 'much' of type 'str' could not be"),
        (["name=x", "on=perhaps"], "on (given: 'perhaps'): Value 'perhaps' is not a valid bool"),
        (["name=x", "kind=huge"], "kind (given: 'huge'): Invalid value 'huge', expected one of ['small', 'large']"),
        (["name=???"], "name has no value and needs one"),
        (["name=x", "paths=a"], "paths (given: 'a') must be a list: 'paths=[a]'"),
        (["name=x", "inner=3"], "inner (given: 3): Merge error"),
        (["name=x", "inner=[1, 2]"], "inner (given: [1, 2]): Merge error"),
        (["name=x", "inner={}", "inner=[1]"], "override 'inner=[1]' cannot be read: Cannot merge incompatible"),
        (["name=x", "inner.betas=[0.9]"], "inner (given: {'betas': [0.9]}): TupleConfig length 1 does not match"),
        (["kind=large"], "the command line: name has no value and needs one; set it in the YAML file or add name=..."),
        (["name=${nowhere}"], "name: Interpolation key 'nowhere' not found"),
    ],
)
def test_each_mistake_names_key_value_and_rule(words: list[str], message: str) -> None:
    assert message in refused(*words)


def test_all_broken_rules_are_told_at_once() -> None:
    assert refused("name=forbidden", "inner.size=0") == (
        "the command line:\n  - inner.size=0 must be at least 1\n  - name is forbidden"
    )


@pytest.mark.parametrize("word", ["trainer.max_steps", "=3", "", "--name"])
def test_a_word_without_key_and_value_is_refused(word: str) -> None:
    assert refused("name=x", word) == (
        f"override '{word}' is not of the form key=value, for example trainer.max_steps=100"
    )


def test_a_value_that_is_no_yaml_is_refused() -> None:
    message = refused("name=x", "paths=[a")
    assert message.startswith("override 'paths=[a' cannot be read: ")
    assert message.endswith("Quote values with special characters.")


def test_dotlist_nests() -> None:
    assert dotlist(["a.b=1", "a.c=[x]"], Outer) == OmegaConf.create({"a": {"b": 1, "c": ["x"]}})
    assert dotlist([], Outer) == OmegaConf.create({})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_includes_are_relative_to_their_file_and_the_later_and_nearer_wins(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "a: base\nb: base\nc: base\nd: base\nlist: [1, 2]\nkeys: {x: base, y: base}\n")
    write(tmp_path / "parts" / "first.yaml", "include: ../base.yaml\nb: first\nc: first\nd: first\n")
    write(tmp_path / "parts" / "second.yaml", "c: second\nd: second\nkeys: {y: second}\n")
    own = write(tmp_path / "own.yaml", "include: [parts/first.yaml, parts/second.yaml]\nd: own\nlist: [3]\n")
    assert read_yaml(own) == OmegaConf.create(
        {
            "a": "base",
            "b": "first",
            "c": "second",
            "d": "own",
            "list": [3],
            "keys": {"x": "base", "y": "second"},
        }
    )


def test_what_is_not_beside_the_file_is_found_in_the_projects_configs(tmp_path: Path) -> None:
    own = write(tmp_path / "mine.yaml", "include: [model/tiny.yaml]\nseed: 5\n")
    found = read_yaml(own)
    assert (found.model.d_model, found.seed) == (64, 5)
    write(tmp_path / "model" / "tiny.yaml", "model: {d_model: 7}\n")
    assert read_yaml(own) == OmegaConf.create({"model": {"d_model": 7}, "seed": 5})  # the nearer one wins


def test_a_file_may_be_included_by_two_ways(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "a: 1\n")
    for name in "xy":
        write(tmp_path / f"{name}.yaml", f"include: base.yaml\n{name}: 1\n")
    assert read_yaml(write(tmp_path / "own.yaml", "include: [x.yaml, y.yaml]\n")) == OmegaConf.create(
        {"a": 1, "x": 1, "y": 1}
    )


def test_an_interpolation_sees_what_later_files_say(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "name: base\ngroup: ${name}\n")
    own = write(tmp_path / "own.yaml", "include: base.yaml\nname: own\n")
    assert build(Outer, read_yaml(own), source="own").group == "own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "own.yaml is not valid YAML: "),
        ("\ta: 1\n", "own.yaml is not valid YAML: "),
        ("a: 1\na: 2\n", "found duplicate key a"),
        ("a: ${b\n", "own.yaml is not valid YAML: "),
        ("- a\n- b\n", "own.yaml must hold keys and values at its top level"),
        ("5\n", "own.yaml must hold keys and values at its top level"),
        ("words of another file\n", "own.yaml must hold keys and values at its top level"),
        ("a: " + "[" * 20_000, "own.yaml nests lists or keys more than 50 deep"),
        ("include: 5\n", "own.yaml: include=5 must be a file name or a list of them, such as [model/tiny.yaml]"),
        ("include: {a: b}\n", "must be a file name or a list of them"),
        ("include: [a.yaml, 5]\n", "include=['a.yaml', 5] must be a file name or a list of them"),
        ("include:\n", "include=None must be a file name or a list of them"),
    ],
)
def test_an_unusable_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_yaml(write(tmp_path / "own.yaml", text))
    assert message in str(error.value)
    assert str(tmp_path / "own.yaml") in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"own\.yaml is not valid YAML"):
        read_yaml(tmp_path / "own.yaml")


def test_a_missing_file_says_who_included_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_yaml(tmp_path / "none.yaml")
    assert str(error.value) == (
        f"configuration file {tmp_path / 'none.yaml'} does not exist; "
        "configs/ holds the ones that come with the project"
    )
    own = write(tmp_path / "own.yaml", "include: none.yaml\n")
    with pytest.raises(ConfigError) as error:
        read_yaml(own)
    assert f"{tmp_path / 'none.yaml'} does not exist (included by {own}, and not in " in str(error.value)


def test_a_circle_of_includes_is_refused(tmp_path: Path) -> None:
    own, other = tmp_path / "own.yaml", tmp_path / "other.yaml"
    write(own, "include: other.yaml\n")
    write(other, "include: own.yaml\n")
    with pytest.raises(ConfigError) as error:
        read_yaml(own)
    assert str(error.value) == f"{own} includes itself through {other}; break the circle of include entries"


def test_a_list_over_keys_is_refused_in_files_too(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "a: {b: {c: 1}}\n")
    own = write(tmp_path / "own.yaml", "include: base.yaml\na: {b: [1]}\n")
    with pytest.raises(ConfigError) as error:
        read_yaml(own)
    assert str(error.value) == f"{own}: a: a list cannot replace keys"


SECRET = "7Hq2planted9Zx"


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (f"tracking.api_key={SECRET}", "tracking.api_key is named like a secret"),
        (f"hub_token='{SECRET}'", "hub_token is named like a secret"),
        ("password=12345678", "password is named like a secret"),
        (f"token=[{SECRET}", "token is named like a secret"),  # and no YAML either
        (f"paths=['https://me:{SECRET}@host/x']", "paths is an address with a user's password in it"),
        (f"name='https://host/x?X-Amz-Signature={SECRET}'", "name is a signed address"),
        ("name=${oc.env:SOME_API_KEY}", "name holds a secret"),
    ],
)
def test_secrets_are_refused_and_not_told(word: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    with pytest.raises(ConfigError) as error:
        parse_overrides(Outer, ["name=x", word])
    assert f"the command line: {told}. A configuration is written" in str(error.value)
    assert "in the environment (WANDB_API_KEY" in str(error.value)
    assert SECRET not in str(error.value)
    assert "12345678" not in str(error.value)


def test_what_merely_sounds_like_a_secret_is_taken() -> None:
    assert parse_overrides(Outer, ["name=tokenizer", "group=s3://bucket/x"]).group == "s3://bucket/x"


@pytest.mark.parametrize(("old", "now"), [("true", "block"), ("false", "none"), ("projection", "projection")])
def test_configurations_of_old_runs_are_still_read(old: str, now: str, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(f"hardware: {{recompute: {old}, accelerator: gpu}}\n")
    words = [f"hardware.recompute={old}", "hardware.accelerator=gpu"]
    found = [build(TrainBenchmarkConfig, read_yaml(path), str(path)), parse_overrides(TrainBenchmarkConfig, words)]
    assert [config.hardware.recompute for config in found] == [now, now]
