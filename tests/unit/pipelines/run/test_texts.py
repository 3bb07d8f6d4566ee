"""Texts in configurations: as typed, quoted, written and read back, and at home."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from pipelines.benchmark.data import DataBenchmarkConfig
from pipelines.benchmark.generate import GenerateBenchmarkConfig
from pipelines.benchmark.train import TrainBenchmarkConfig
from pipelines.prepare.__main__ import SOURCES
from pipelines.run.config import RunConfig
from pipelines.run.overrides import ConfigError, build, parse_overrides, read_yaml
from pipelines.run.texts import kind_of, literally, override


@dataclass(frozen=True, kw_only=True)
class Part:
    folder: str = ""
    size: int = 3


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str = ""
    group: str | None = "g"
    kind: Literal["on", "off"] = "on"
    paths: tuple[str, ...] = ()
    part: Part = field(default_factory=Part)
    more: Part | None = None


def read(*words: str) -> Whole:
    return parse_overrides(Whole, words)


@pytest.mark.parametrize(
    "typed",
    ["2024_11_05", "007", "no", "1e5", "0x1F", "12:30:45", "null", "true", "2024-11-05", "shards #2", "o'brien", "a: b",
     "- a", "[x", "{a", "a, b", "*", "&a", "!x", "%", "@", "`", "x=y", " x ", "", "'a' and 'b'", "it's 'so'", "'",
     "C:\\n", "Ünïcode 犬"],
)  # fmt: skip
def test_a_text_is_the_word_as_typed(typed: str) -> None:
    found = read(f"name={typed}", f"part.folder={typed}", f"more.folder={typed}")
    assert (found.name, found.part.folder, found.more) == (typed, typed, Part(folder=typed))


@pytest.mark.parametrize(
    ("typed", "text"),
    [("'007'", "007"), ('"007"', "007"), ("'it''s #2'", "it's #2"), ('"a\\nb\\u00e9"', "a\nbé"), ("''", ""),
     ('"\\x41"', "A")],
)  # fmt: skip
def test_quotes_around_the_whole_text_are_taken_off(typed: str, text: str) -> None:
    assert read(f"name={typed}").name == text


def test_choices_lists_and_keys_that_may_be_empty() -> None:
    assert read("kind=off").kind == "off"
    assert read("paths=[2024_11_05, 007, no, 1e5, null, 'a #2', \"b, c\"]").paths == (
        *("2024_11_05", "007", "no", "1e5", "null", "a #2", "b, c"),
    )
    assert read("paths=[]").paths == ()
    assert (read("group=null").group, read("group='null'").group, read("group=007").group) == (None, "null", "007")
    with pytest.raises(ConfigError, match=r"paths \(given: 'a'\) must be a list: 'paths=\[a\]'"):
        read("paths=a")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (
            "name: 007",
            'name is a text, but without quotes YAML reads its value as 7; put it in quotes, as in "007"',
        ),
        ("name: 2024_11_05", "reads its value as 20241105"),
        ("name: 1e5", "name is a text, but without quotes YAML reads its value as 100000.0"),
        ("group: no", "group is a text, but without quotes YAML reads its value as false"),
        ("kind: on", "kind is a text, but without quotes YAML reads its value as true"),
        ("part: {folder: 1.5}", "part.folder is a text, but without quotes YAML reads its value as 1.5"),
        ("more: {folder: 0x1F}", "more.folder is a text, but without quotes YAML reads its value as 31"),
        ("paths: [a, 007]", "paths is a text, but without quotes YAML reads its value as 7"),
        ("name: !!binary aGVsbG8=", "name is a text, but without quotes YAML reads its value as 5 bytes"),
    ],
)
def test_a_number_for_a_text_in_yaml_must_be_quoted(tmp_path: Path, yaml: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(yaml + "\n")
    with pytest.raises(ConfigError) as error:
        build(Whole, read_yaml(tmp_path / "a.yaml"), source="a.yaml")
    assert str(error.value).startswith("a.yaml:\n  - ")
    assert message in str(error.value)


def test_quoted_and_plain_texts_in_yaml_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: '007'\ngroup: \"no\"\npaths: ['1', a]\nkind: 'off'\nmore: {size: 4}\n")
    assert build(Whole, read_yaml(tmp_path / "a.yaml"), source="a.yaml") == Whole(
        name="007", group="no", paths=("1", "a"), kind="off", more=Part(size=4)
    )


def odd_texts() -> Iterator[str]:
    yield from (
        "o'brien",
        "lr #2",
        "${name}",
        "\\${name}",
        "\\\\${name}",
        "a${",
        "$${x}",
        "'quoted'",
        '"',
        '""',
        "'",
        "x\ny",
        "/caf\udce9",
    )
    dice = random.Random(0)
    for _ in range(150):
        yield "".join(dice.choices("'\"#${}\\ :-,[]é\n\tx", k=dice.randint(1, 8)))


def test_words_and_files_of_ours_are_read_back_as_meant(tmp_path: Path) -> None:
    for text in odd_texts():
        path = Path("x") / text.strip("/")
        words = [override("name", text), override("part.folder", path)]
        assert all("\n" not in word for word in words), text  # one word a line: pipelines.sweep --propose
        found = read(*words)
        assert (found.name, found.part.folder) == (text, str(path))
        if "\udce9" not in text:  # half a surrogate pair, as Python names files that are not Unicode; YAML has none
            found = read(*words, override("paths", [text, "b"]))
            assert found.paths == (text, "b")
            (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(literally(asdict(found)))))
            assert build(Whole, read_yaml(tmp_path / "config.yaml"), source="config.yaml") == found, text


def test_other_values_are_words_too() -> None:
    assert override("part.size", 4) == "part.size=4"
    assert read(override("part.size", 4), override("group", None), override("more", {"size": 2})) == Whole(
        part=Part(size=4), group=None, more=Part(size=2)
    )
    assert read(override("part.folder", Path("~odd"))).part.folder == "./~odd"  # a folder of this name, not a user's


def test_an_interpolation_is_still_one() -> None:
    assert read("name=x", "part.folder=runs/${name}").part.folder == "runs/x"


def texts_of(cls: type, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """All keys of texts and whether they are lists; choices are left out."""
    for each in fields(cls):
        key = f"{prefix}{each.name}"
        kind = kind_of(cls, each.name)
        kinds = [kind, *getattr(kind, "__args__", ())]
        section = next((one for one in kinds if is_dataclass(one)), None)
        if section is not None:
            yield from texts_of(section, f"{key}.")
        elif str in kinds and dict not in kinds:
            yield key, str(kind).startswith("tuple")


EVERY = {
    "run": (RunConfig, ["stage.name=t2i_pretrain", "trainer.max_steps=1", "evaluation.fid.n=1"]),
    "benchmark data": (DataBenchmarkConfig, []),
    "benchmark train": (TrainBenchmarkConfig, []),
    "benchmark generate": (GenerateBenchmarkConfig, []),
    **{f"prepare {name}": (source.config, []) for name, source in SOURCES.items()},
}


@pytest.mark.parametrize("verb", EVERY)
def test_the_home_folder_may_be_written_short_in_every_text(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, required = EVERY[verb]
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(cls, "problems", lambda self: [], raising=False)
    keys = dict(texts_of(cls))
    if verb == "run":
        assert {"run.dir", "data.cache", "pretrained", "init_from", "evaluation.pope.folder", "scenes.folder"} <= set(
            keys
        )
    given = [f"{key}=[~/x, ~]" if listed else f"{key}=~/x" for key, listed in keys.items()]
    config: Any = parse_overrides(cls, [*given, *required])
    for key, listed in keys.items():
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        expected = ("/home/me/x", "/home/me") if listed else "/home/me/x"
        assert value == ("t2i_pretrain" if key == "stage.name" else expected), key
    key, listed = next(iter(keys.items()))
    wrong = f"{key}=[~nobody_here/x]" if listed else f"{key}=~nobody_here/x"
    with pytest.raises(
        ConfigError, match=rf"{key}=~nobody_here/x: ~ stands for a home folder, but there is no such us"
    ):
        parse_overrides(cls, [*given, *required, wrong])
